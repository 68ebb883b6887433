"""The problems of a reinforcement run: those whose prompts leave the model room for an answer."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from training.api import ServiceClient
from training.connect import has_own_engines
from training.control_tokens import RefusedByTemplateError
from training.domains.base import Domain, Problem, Split
from training.domains.checks import checked_problems
from training.domains.own import told_as_own
from training.models import context_length, load_tokenizer
from training.problem_text import prompt_tokens
from utils.config.plain_yaml import to_plain
from utils.runs.inputs import Input, data_input

logger = logging.getLogger(__name__)
_IDS_SHOWN = 50


class PromptLimit(NamedTuple):
    """How prompts become tokens, and how many of them the model takes; None: no known limit."""

    tokenizer: Any
    max_tokens: int | None

    @classmethod
    def of(cls, config: Any, service: ServiceClient, domain: Domain) -> "PromptLimit":
        """For the model of `config`, whose weights are not loaded. Raises ValueError or OSError
        where it has no tokenizer or cannot be found."""
        if has_own_engines(config.backend):
            tokenizer, context = (
                load_tokenizer(config.model_name),
                context_length(config.model_name),
            )
            # the engine cuts an answer's length down to what the context leaves
            room = 1
        else:
            sampler = service.create_sampling_client(base_model=config.model_name)
            models = service.get_server_capabilities().supported_models
            lengths = {model.model_name: model.max_context_length for model in models}
            tokenizer, context = sampler.get_tokenizer(), lengths.get(config.model_name)
            room = domain.max_tokens
        return cls(tokenizer, None if context is None else context - room)

    def length(self, problem: Problem) -> int:
        """Of its prompt, in tokens; ValueError names a problem that cannot be written as one."""
        try:
            return len(prompt_tokens(self.tokenizer, problem))
        except RefusedByTemplateError as error:
            raise ValueError(
                f"{problem.id}: {error.reason}. Change its messages, or let it be a Problem with "
                "raw=, a text that the model continues"
            ) from error
        except ValueError as error:
            raise ValueError(f"{problem.id}: {error}") from error


class Chosen(NamedTuple):
    """The problems that are used, and the ids of those that are left out."""

    problems: list[Problem]
    too_long: list[str]


def choose_problems(
    problems: Sequence[Problem], what: str, limit: PromptLimit, size: int | None = None
) -> Chosen:
    """The first `size` problems (None: all) whose prompts are within the limit, and those that were
    passed over. The log tells the ids, `what` they are; ValueError where nothing is left."""
    chosen = Chosen([], [])
    for problem in problems:
        if len(chosen.problems) == size:
            break
        too_long = limit.max_tokens is not None and limit.length(problem) > limit.max_tokens
        if too_long:
            chosen.too_long.append(problem.id)
        else:
            chosen.problems.append(problem)
    if not chosen.too_long:
        return chosen
    count = len(chosen.problems) + len(chosen.too_long)
    found = (
        f"{len(chosen.too_long)} of {count} {what} have prompts of more than "
        f"{limit.max_tokens} tokens, which is all that the model's context holds beside an answer"
    )
    if not chosen.problems:
        raise ValueError(f"{found}: {_listed(chosen.too_long)}; use a model with a longer context")
    logger.warning("%s, and are left out: %s", found, _listed(chosen.too_long))
    return chosen


def choose_both(
    domain: Domain, name: str, limit: PromptLimit, eval_size: int
) -> dict[Split, Chosen]:
    """What is trained on and what is held out, of the domain that the setting `domain` names so.
    Raises ConfigError for what is wrong with the domain's problems, or raised by its own code."""
    with told_as_own(name):
        train, test = checked_problems(domain, "train"), checked_problems(domain, "test")
    return {
        "train": choose_problems(train, "train problems", limit),
        "test": choose_problems(test, "test problems", limit, eval_size),
    }


def problems_input(domain: Domain, name: str, chosen: Chosen) -> Input:
    """What a run stores of its problems, so that it goes on with no others, of the domain that the
    setting `domain` names so. ValueError where a solution is no plain data, ConfigError for what an
    own domain's solution() raises."""
    items = ([p.id, p.messages, _solution(domain, name, p), *_prompted(p)] for p in chosen.problems)
    return data_input(f"what domain={domain.name} reads", items)


def _prompted(problem: Problem) -> list[Any]:
    parts = [] if problem.raw is None else [problem.raw.text, list(problem.raw.stop)]
    return parts if problem.grammar is None else [*parts, problem.grammar]


def _solution(domain: Domain, name: str, problem: Problem) -> Any:
    with told_as_own(name):
        solution = domain.solution(problem)
    try:
        return to_plain(solution)
    except TypeError as error:
        raise ValueError(
            f"{problem.id}: its solution() has to be plain data, by which runs know it ({error})"
        ) from error


def _listed(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _IDS_SHOWN} more" if len(ids) > _IDS_SHOWN else ""
    return ", ".join(ids[:_IDS_SHOWN]) + more
