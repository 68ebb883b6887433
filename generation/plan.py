"""What scripts/generate.py would do with its settings, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from generation.kinds import Kind, example_request, subtypes_request
from generation.properties import Property
from generation.quality import VERIFIER
from utils.llm.api import Role
from utils.llm.roles import roles_text
from utils.runs.tables import text_table

# a sentence
LEAST_CHARS = 40
NUM_SUBTYPES = 8
PROMPTS_PER_SUBTYPE = 4


def settings_problems(config: Any) -> list[str]:
    """What is wrong with settings of scripts/generate.py that need no file to be judged."""
    least = {"max_chars": LEAST_CHARS}
    counts = ("num_subtypes", "prompts_per_subtype", "examples_per_prompt", "max_concurrency")
    problems = [
        f"{name}={value}: at least {least.get(name, 1)} is needed"
        for name in (*counts, "max_chars")
        if (value := getattr(config, name)) is not None and value < least.get(name, 1)
    ]
    given = {"num_subtypes": config.subtypes or config.prompts}
    given["prompts_per_subtype"] = config.prompts
    for name, texts in given.items():
        if texts and getattr(config, name) is not None:
            problems.append(
                f"{name}={getattr(config, name)}: the texts are given already (subtypes, prompts, "
                "params_file); leave it out, or start without them"
            )
    if config.max_cost_usd is not None and not config.max_cost_usd > 0:
        problems.append(f"max_cost_usd={config.max_cost_usd}: above 0, or None for no limit")
    count = (
        len(config.prompts) or len(config.subtypes) or max(config.num_subtypes or NUM_SUBTYPES, 1)
    )
    if not 0 <= config.heldout_subtypes < count:
        problems.append(
            f"heldout_subtypes={config.heldout_subtypes}: of {count} subtypes, at least one has "
            f"to stay for training; allowed are 0 to {count - 1}"
        )
    return problems + _text_problems(config.subtypes, config.prompts)


def _text_problems(subtypes: Sequence[str], prompts: Mapping[str, Sequence[str]]) -> list[str]:
    problems = []
    if not all(map(str.strip, subtypes)) or len(set(subtypes)) < len(subtypes):
        problems.append(f"subtypes={subtypes}: none may be empty or there twice")
    for subtype, own in prompts.items():
        if not own or not all(map(str.strip, own)):
            problems.append(f"prompts.{subtype}={own}: at least one is needed, and none empty")
    if subtypes and prompts and set(subtypes) != set(prompts):
        problems.append(
            f"prompts are for {list(prompts)}, subtypes={subtypes}: name the same, or leave one out"
        )
    return problems


def count_calls(config: Any, roles: Sequence[Role]) -> list[tuple[str, int]]:
    """By stage, without what has to be asked again."""
    subtypes = len(config.prompts) or len(config.subtypes) or config.num_subtypes or NUM_SUBTYPES
    prompts_each = config.prompts_per_subtype or PROMPTS_PER_SUBTYPE
    prompts = sum(map(len, config.prompts.values())) or subtypes * prompts_each
    examples = prompts * config.examples_per_prompt
    verified = examples * (1 + config.contrastive) if VERIFIER in [r.name for r in roles] else 0
    return [
        ("subtypes", 0 if config.subtypes or config.prompts else 1),
        ("prompts", 0 if config.prompts else subtypes),
        ("examples", examples),
        ("verify", verified),
    ]


def plan_text(config: Any, kind: Kind, property: Property, roles: Sequence[Role]) -> str:
    """What would be asked, of whom and how often."""
    num_subtypes = config.num_subtypes or NUM_SUBTYPES
    first = subtypes_request(kind, property, num_subtypes, [])[0]["content"]
    example = example_request(
        kind, property, "{prompt}", contrastive=config.contrastive, max_chars=config.max_chars
    )[0]["content"]
    calls = text_table(("stage", "calls, at least"), count_calls(config, roles))
    who = roles_text(roles)
    return f"{who}\n\n{calls}\n\nFor subtypes:\n\n{first}\n\nFor an example:\n\n{example}"
