"""What scripts/gen_eval.py would do with its settings, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chz

from evaluation.behaviour.prompts import categories_request, messages_request
from generation.properties import Property, choose_properties, known_properties
from generation.variation import draw_variations
from utils.config.entrypoint import load_yaml, problems_of
from utils.config.ranges import range_problems
from utils.llm.api import Role
from utils.llm.roles import roles_text
from utils.runs.tables import text_table

NUM_CATEGORIES = 8


def settings_problems(config: Any) -> list[str]:
    """What is wrong with settings of scripts/gen_eval.py."""
    problems = problems_of(lambda: chosen(config))
    stored = stored_params(config)
    has = _properties_of(stored)
    strangers = [name for name in config.properties if name not in has]
    # known ones may join those of the file; with none of them it would be of no use
    if has and strangers and (problems or strangers == config.properties):
        problems.append(f"properties names {strangers}: {config.params_file} has {has}")
    counts = ("num_categories", "prompts_per_category", "max_concurrency")
    problems += range_problems(config, at_least_1=counts)
    all_given = bool(config.properties) and not unwritten(config)
    if all_given and config.num_categories not in (None, stored.get("num_categories")):
        problems.append(
            f"num_categories={config.num_categories}: all categories are given already "
            "(categories, params_file); leave it out, or start without them"
        )
    if config.max_cost_usd is not None and not config.max_cost_usd > 0:
        problems.append(f"max_cost_usd={config.max_cost_usd}: above 0, or None for no limit")
    if not 0 <= config.min_realism <= 10:
        problems.append(f"min_realism={config.min_realism}: from 0 to 10 is needed")
    if not 1 <= config.max_eval_awareness <= 10:
        problems.append(f"max_eval_awareness={config.max_eval_awareness}: from 1 to 10 is needed")
    for name in ("num_turns", "categories"):
        unknown = [key for key in getattr(config, name) if key not in config.properties]
        if unknown:
            problems.append(f"{name} names {unknown}, not in properties={config.properties}")
    for name, turns in config.num_turns.items():
        if turns < 1:
            problems.append(f"num_turns.{name}={turns}: at least 1 is needed")
    for name, categories in config.categories.items():
        if not categories or len(set(map(str.strip, categories)) - {""}) < len(categories):
            problems.append(f"categories.{name}={categories}: some, none empty, no two alike")
    if filters(config) and not config.score_realism:
        problems.append("min_realism and max_eval_awareness need score_realism=true")
    return problems


def filters(config: Any) -> bool:
    return config.min_realism > 0 or config.max_eval_awareness < 10


def chosen(config: Any) -> list[Property]:
    return choose_properties(config.properties, known_properties(config.properties_file))


def unwritten(config: Any) -> list[str]:
    """The properties whose categories are still to be written."""
    return [name for name in config.properties if name not in config.categories]


def stored_params(config: Any) -> dict[str, Any]:
    """What params_file holds, if there is one; `params_file=` is none."""
    if config.params_file is None or config.params_file == Path():
        return {}
    return load_yaml(config.params_file)


def narrowed(config: Any) -> Any:
    """Without what params_file has for properties that are not asked for; what is typed for one of
    them stays, to be complained of."""
    stored = stored_params(config)
    left_out = set(_properties_of(stored)) - set(config.properties)
    kept = {
        name: {key: value for key, value in given.items() if key not in left_out}
        for name in ("num_turns", "categories")
        if (given := getattr(config, name)) == stored.get(name)
    }
    return chz.replace(config, **kept)


def _properties_of(params: dict[str, Any]) -> list[str]:
    """Those that a params file names, or has categories for."""
    names = params.get("properties", list(params.get("categories") or {}))
    return names if isinstance(names, list) else []


def count_calls(config: Any, properties: list[Property]) -> list[tuple[str, int]]:
    """By stage, without what has to be asked again."""
    num_categories = config.num_categories or NUM_CATEGORIES
    counts = [len(config.categories.get(p.name, [])) or num_categories for p in properties]
    prompts = sum(counts) * config.prompts_per_category
    rows = [("categories", len(unwritten(config))), ("prompts", prompts)]
    return rows + ([("realism", prompts)] if config.score_realism else [])


def plan_text(config: Any, properties: list[Property], roles: list[Role]) -> str:
    """What would be asked, of whom and how often."""
    num_categories = config.num_categories or NUM_CATEGORIES
    calls = text_table(("stage", "calls, at least"), count_calls(config, properties))
    [first] = categories_request(properties[0], num_categories, [])
    [variation] = draw_variations(1, config.seed)
    turns = config.num_turns.get(properties[0].name, 1)
    [prompt] = messages_request(properties[0], "{category}", variation, turns)
    return (
        f"{roles_text(roles)}\n\n{calls}\n\nFirst request:\n\n{first['content']}\n\n"
        f"For a prompt:\n\n{prompt['content']}"
    )
