"""What a domain gives is what base.Domain says, so that a mistake in one is told and not computed
with."""

import inspect
import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from chz.tiepin import is_subtype_instance, type_repr

from training.answer_forms import form_problem
from training.domains.base import Domain, Problem, RawPrompt, Reward, Split, TrainsAdapters
from utils.config.errors import raise_problems

_MAX_PROBLEMS = 10


def check_domain(domain: Any, name: str) -> None:
    """Raises ConfigError with the attributes that a domain lacks, or that are of another type."""
    problems = []
    for attribute, wanted in inspect.get_annotations(Domain).items():
        if not hasattr(domain, attribute):
            problems.append(f"domain={name!r}: it lacks {attribute}, {type_repr(wanted)}")
        elif not is_subtype_instance(value := getattr(domain, attribute), wanted):
            problems.append(
                f"domain={name!r}: its {attribute} is {value!r}; {type_repr(wanted)} is needed"
            )
    if not problems and domain.max_tokens < 1:
        problems.append(f"domain={name!r}: its max_tokens is {domain.max_tokens}; at least 1")
    try:
        # checkpoints keep it so
        json.dumps(domain.state())
    except (TypeError, ValueError) as error:
        problems.append(f"domain={name!r}: its state() is no plain data for JSON ({error})")
    raise_problems(problems)


def check_with_model(domain: Domain) -> None:
    """Loads the base model where the domain is a TrainsAdapters, and raises what that does."""
    if isinstance(domain, TrainsAdapters):
        domain.check_with_model()


def checked_problems(domain: Domain, split: Split) -> list[Problem]:
    """The problems of a split: at least one, each with an id of its own and with messages.
    ConfigError otherwise."""
    found: Any = domain.problems(split)
    told = f"problems({split!r}) of {type(domain).__name__}"
    if not isinstance(found, list) or not found:
        raise_problems([f"{told} is {_shown(found)}; a list of at least one Problem is needed"])
    problems = [
        f"{told}, number {i}: {wrong}"
        for i, problem in enumerate(found)
        if (wrong := _problem_with(problem)) is not None
    ]
    if not problems:
        counts = Counter(problem.id for problem in found)
        problems = [
            f"{told}: the id {key!r} is given {count} times"
            for key, count in counts.items()
            if count > 1
        ]
    raise_problems(problems, at_most=_MAX_PROBLEMS)
    return found


def check_forms(domain: Domain, name: str, problems: Sequence[Problem]) -> None:
    """Raises ConfigError for a json_schema of the domain, and grammars of problems, that no answer
    can be held to."""
    told = []
    if domain.json_schema is not None and (
        wrong := form_problem("json_schema", domain.json_schema)
    ):
        told.append(f"domain={name!r}: its json_schema: {wrong}")
    first = {p.grammar: p.id for p in reversed(problems) if p.grammar is not None}
    told += [
        f"domain={name!r}: the grammar of {key}: {wrong}"
        for grammar, key in first.items()
        if (wrong := form_problem("grammar", grammar)) is not None
    ]
    raise_problems(told, at_most=_MAX_PROBLEMS)


def checked_rewards(
    domain: Domain, problems_P: list[Problem], answers_P_G: list[list[str]]
) -> list[list[Reward]]:
    """domain.rewards, with a Reward of a finite value, and a bool as solved, for each answer;
    ConfigError otherwise."""
    rewards_P_G: Any = domain.rewards(problems_P, answers_P_G)
    told = f"rewards() of {type(domain).__name__}"
    if not isinstance(rewards_P_G, list) or len(rewards_P_G) != len(problems_P):
        raise_problems(
            [f"{told} gave {_shown(rewards_P_G)}; a list for each of {len(problems_P)} problems"]
        )
    problems = []
    for problem, answers_G, rewards_G in zip(problems_P, answers_P_G, rewards_P_G, strict=True):
        if not isinstance(rewards_G, list) or len(rewards_G) != len(answers_G):
            wrong = f"{_shown(rewards_G)} for {len(answers_G)} answers"
        else:
            wrong = next((_shown(r) for r in rewards_G if not _is_reward(r)), None)
        if wrong is not None:
            problems.append(
                f"{told} gave {wrong} to {problem.id}; Reward(value, solved) with a finite value, "
                "True or False, a text as note, and True, False or None as success are needed"
            )
    raise_problems(problems, at_most=_MAX_PROBLEMS)
    return rewards_P_G


def _problem_with(problem: Any) -> str | None:
    if not isinstance(problem, Problem) or not isinstance(problem.id, str):
        return f"{_shown(problem)}; a Problem(id, messages, data) with a text as id is needed"
    for message in problem.messages if isinstance(problem.messages, list) else ():
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            return f"message {_shown(message)}; a dict with role and content is needed"
        if not isinstance(message["content"], str) or not isinstance(message["role"], str):
            return f"message {_shown(message)}; its role and its content have to be texts"
    if not isinstance(problem.messages, list) or not problem.messages:
        return f"its messages are {_shown(problem.messages)}; a list of at least one is needed"
    if not isinstance(problem.raw, RawPrompt | None) or (problem.raw and not problem.raw.text):
        return f"its raw is {_shown(problem.raw)}; a RawPrompt with a text, or None, is needed"
    grammar = problem.grammar
    if grammar is not None and (not isinstance(grammar, str) or not grammar.strip()):
        return f"its grammar is {_shown(grammar)}; a grammar as a text, or None, is needed"
    return None


def _is_reward(value: Any) -> bool:
    return (
        isinstance(value, Reward)
        and isinstance(value.value, (int, float))
        # an int may be larger than any float
        and abs(value.value) <= sys.float_info.max
        and isinstance(value.solved, (bool, np.bool_))
        and isinstance(value.note, str)
        and isinstance(value.success, (bool, np.bool_, type(None)))
    )


def _shown(value: Any) -> str:
    if isinstance(value, list) and not isinstance(value, str) and len(value) > 3:
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
