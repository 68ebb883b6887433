"""Any data set of reasoning-gym: procedural problems with their own scoring."""

import dataclasses
import difflib
import itertools
import logging
import math
import warnings
from typing import TYPE_CHECKING, Any

import chz

from training.api import ServiceClient
from training.domains.base import Message, Problem, Reward, Split, Stateless
from training.domains.gym_guard import Consulted, doubt, extract_answer, is_safe, own_score
from utils.config.help import SAMPLING, WHAT

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset

logger = logging.getLogger(__name__)

# reasoning-gym makes item i from seed + i, so two splits are disjoint when their seeds are at
# least one size apart
SPLIT_DISTANCE = 100_000_000


@chz.chz(typecheck=True)
class GymConfig:
    task: str = chz.field(
        default="chain_sum", doc="name of a reasoning-gym data set", metadata=WHAT
    )
    task_config: dict[str, Any] = chz.field(
        default_factory=dict, doc="settings of that data set, such as task_config.max_terms=3"
    )
    train_size: int = chz.field(
        default=1000, doc="problems in the train split, less those of the test split"
    )
    test_size: int = chz.field(default=100, doc="problems in the test split")
    seed: int = chz.field(default=0, doc="first seed of the test split")
    answer_prefix: str | None = chz.field(
        default=None,
        doc='text such as "Answer:" before the final answer, so that the model may think first; '
        "None: the whole reply is the answer",
    )
    shots: int = chz.field(
        default=0,
        doc="solved problems shown as earlier turns, the same in every prompt; not with "
        "answer_prefix, because the data sets have answers but no reasoning",
    )

    max_tokens: int = chz.field(default=64, doc="longest answer that is sampled", metadata=SAMPLING)


class GymDomain(Stateless):
    name = "gym"

    def __init__(self, config: GymConfig, service: ServiceClient | None = None) -> None:
        """Raises ValueError for an unknown task or setting; `service` is not used."""
        self.config = config
        self.max_tokens = config.max_tokens
        if not (0 < config.train_size <= SPLIT_DISTANCE and 0 < config.test_size <= SPLIT_DISTANCE):
            raise ValueError(
                f"train_size={config.train_size}, test_size={config.test_size}: "
                f"allowed are 1 to {SPLIT_DISTANCE}"
            )
        if config.shots < 0 or (config.shots and config.answer_prefix is not None):
            raise ValueError(
                f"shots={config.shots}, answer_prefix={config.answer_prefix!r}: shots is at least "
                "0, and only without answer_prefix above it"
            )
        self._datasets: dict[Split, ProceduralDataset] = {
            "train": _create(config, seed=config.seed + SPLIT_DISTANCE, size=config.train_size),
            "test": _create(config, seed=config.seed, size=config.test_size),
        }
        self._shots = self._solved_turns()

    def problems(self, split: Split) -> list[Problem]:
        """The same for the same config. Problem.data is reasoning-gym's entry.

        Train problems whose question is also in the test split are left out; ValueError where
        none remains.
        """
        task = self.config.task
        entries = dict(enumerate(self._entries(split)))
        if split == "train":
            # different seeds can make the same question where a task has few
            tested = {entry["question"] for entry in self._entries("test")}
            entries = {i: e for i, e in entries.items() if e["question"] not in tested}
            num_left_out = self.config.train_size - len(entries)
            logger.info("gym train: %d problems left out, the test split has them", num_left_out)
            if not entries:
                raise ValueError(
                    f"task={task!r}: every train problem is also in the test split; take a "
                    "larger train_size, a smaller test_size or a task_config with more variety"
                )
        logger.info("gym %s: %d problems of reasoning-gym's %s", split, len(entries), task)
        return [
            Problem(
                f"gym/{task}/{split}/{i}",
                [*self._shots, {"role": "user", "content": self._ask(e)}],
                e,
            )
            for i, e in entries.items()
        ]

    def _solved_turns(self) -> list[Message]:
        """Problems of a third range of seeds, as questions and answers; none is in the test."""
        config = self.config
        if not config.shots:
            return []
        tested = {entry["question"] for entry in self._entries("test")}
        pool = _create(
            config, seed=config.seed + 2 * SPLIT_DISTANCE, size=config.shots + config.test_size
        )
        usable = (e for e in pool if e["question"] not in tested and e["answer"] is not None)
        entries = list(itertools.islice(usable, config.shots))
        if len(entries) < config.shots:
            raise ValueError(
                f"shots={config.shots}: found {len(entries)} problems of {config.task} that have "
                "an answer and are not in the test split"
            )
        turns: list[Message] = []
        for entry in entries:
            turns.append({"role": "user", "content": self._ask(entry)})
            turns.append({"role": "assistant", "content": str(entry["answer"])})
        return turns

    def solution(self, problem: Problem) -> Any:
        return problem.data["answer"]

    def rewards(
        self, problems_P: list[Problem], answers_P_G: list[list[str]]
    ) -> list[list[Reward]]:
        """reasoning-gym's scores, 0 to 1; solved is 1, where `gym_guard` agrees. Of antiderivatives
        they are `gym_algebra`'s, 0 or 1."""
        return [
            [self._score(answer, problem.data) for answer in answers_G]
            for problem, answers_G in zip(problems_P, answers_P_G, strict=True)
        ]

    def _entries(self, split: Split) -> list[dict[str, Any]]:
        dataset = self._datasets[split]
        return [dataset[i] for i in range(len(dataset))]

    def _ask(self, entry: dict[str, Any]) -> str:
        prefix = self.config.answer_prefix
        if prefix is None:
            how = "Reply with the final answer only."
        else:
            how = f'Think step by step. End with "{prefix}" and the final answer only.'
        return f"{entry['question'].strip()}\n\n{how}"

    def _score(self, reply: str, entry: dict[str, Any]) -> Reward:
        answer = extract_answer(reply, self.config.answer_prefix)
        if answer is None:
            return Reward(0.0, False, f"no {self.config.answer_prefix!r} in the reply")
        task = entry["metadata"].get("source_dataset", self.config.task)
        if not is_safe(answer, task):
            return Reward(0.0, False, f"answered {answer}, which its scorer cannot be given")
        note = f"answered {answer}, an answer is {entry['answer']}"
        own = own_score(answer, entry, task)
        if own is not None:
            return Reward(own, own == 1.0, note)
        consulted = Consulted(entry)
        why = None
        try:
            value = float(self._datasets["test"].score_answer(answer, consulted))
            if not value < 1.0:
                why = doubt(answer, entry, consulted.keys_read, task)
        except Exception as error:
            # some scorers parse the answer and raise whatever their parser does: a wrong answer
            return Reward(0.0, False, f"the scorer of {self.config.task} raised {error!r}")
        if why is not None:
            return Reward(0.0, False, f"answered {answer}: {why}; an answer is {entry['answer']}")
        # sums of parts end a little above 1, and one that takes nan for a number scores nan
        value = 0.0 if math.isnan(value) else min(value, 1.0)
        return Reward(value, value >= 1.0, note)


def _create(config: GymConfig, *, seed: int, size: int) -> "ProceduralDataset":
    with warnings.catch_warnings():
        # of a library that it imports
        warnings.simplefilter("ignore", SyntaxWarning)
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

    if config.task not in DATASETS:
        close = difflib.get_close_matches(config.task, DATASETS, n=5)
        raise ValueError(
            f"task={config.task!r} is no data set of reasoning-gym"
            f"{'; close are ' + ', '.join(close) if close else ''}. All {len(DATASETS)}: "
            'python -c "from reasoning_gym.factory import DATASETS; print(sorted(DATASETS))"'
        )
    known = {field.name for field in dataclasses.fields(DATASETS[config.task][1])}
    known -= {"seed", "size"}
    unknown = sorted(set(config.task_config) - known)
    if unknown:
        raise ValueError(
            f"task_config has {unknown}; {config.task} knows {sorted(known)} (the seed and the "
            "sizes are settings of the domain: seed, train_size, test_size)"
        )
    try:
        return reasoning_gym.create_dataset(
            config.task, seed=seed, size=size, **dict(sorted(config.task_config.items()))
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f"task={config.task!r} refuses task_config={config.task_config}: {error}"
        ) from error
