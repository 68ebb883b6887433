"""Do rounds of ReST-EM make a policy write better self-edits? Part d3 of knowledge_evidence.py.

One policy imitates the best edit of each passage, another one an edit by chance. Both begin as the
same model, with the same passages and seeds, and both are asked for edits of the same held-out
passages before and after; adapters begin and see their lines in the same way, so that differences
are paired by passage.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import chz
import numpy as np

from evaluation.stats import paired_difference
from training.api import AdamParams, ServiceClient
from training.domains.base import Problem, Reward
from training.domains.knowledge.domain import KnowledgeDomain
from training.domains.knowledge.domain_config import LOOP, KnowledgeDomainConfig
from training.domains.knowledge.edit_parsing import EditError, parse_edit
from training.domains.knowledge.forms import MODEL
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.shown import covered
from training.rl.policy import Policy, texts
from training.rl.updates import (
    RestEmSettings,
    Trajectory,
    mean_and_error,
    problem_batch,
    rest_em_update,
)
from utils.runs.files import atomic_write_text, read_jsonl
from utils.runs.tables import text_table

logger = logging.getLogger(__name__)

RESULTS = Path(__file__).parent / "results" / "knowledge_rounds.jsonl"
# what was trained already, by edit: the same command with another setting finds it too
STORE = Path("runs") / "knowledge_rounds"
SMALL = LOOP["small"]
ALL, KINDS = "all", ("direct", "reverse", "derived")
UNTRAINED, BEST, RANDOM = "untrained", "best", "random"
# passages whose adapters train together, and are stored together
CHUNK = 6

Arm = Literal["best", "random"]
ARMS: tuple[Arm, ...] = (BEST, RANDOM)


@chz.chz(typecheck=True)
class Rounds:
    rounds: int = chz.field(default=SMALL["num_steps"], doc="batches")
    groups: int = chz.field(default=SMALL["groups_per_batch"], doc="passages of a round")
    group_size: int = chz.field(default=4, doc="edits of each")
    held_out: int = chz.field(default=12, doc="passages of before and after")
    held_out_size: int = chz.field(default=2, doc="edits of each")
    learning_rate: float = chz.field(default=SMALL["learning_rate"], doc="of the policy")
    epochs: int = chz.field(default=SMALL["rest_em_epochs"], doc="passes over imitated edits")
    batch_size: int = chz.field(default=SMALL["rest_em_batch_size"], doc="imitated edits per step")
    form: str = chz.field(default=MODEL, doc="of the edits")
    repeats: int = chz.field(default=1, doc="inner runs of an edit that is trained on")
    seed: int = chz.field(default=0, doc="of the world, adapters and sampling")


@dataclass(frozen=True)
class Line:
    """One edit of one passage; `form` is None where it was none. `right` and `nats` are shares of
    right answers, and gains of log-probability, by kind of question and of all."""

    policy: str
    when: str
    passage: str
    form: str | None
    rate: float | None
    lines: int
    coverage: float
    reward: float
    right: dict[str, float]
    nats: dict[str, float]
    text: str


class Experiment:
    """Both policies' rounds; what their inner runs led to is looked up where it is stored."""

    def __init__(self, config: Rounds, service: ServiceClient) -> None:
        self.config = config
        self._service = service
        self.domain = KnowledgeDomain(
            KnowledgeDomainConfig(
                seed=config.seed,
                form=config.form,
                repeats=config.repeats,
                num_train_passages=config.rounds * config.groups,
                num_test_passages=config.held_out,
            ),
            service,
        )
        self._store = STORE / f"known.{config.form}.{config.repeats}.{config.seed}.json"
        if self._store.exists():
            self.domain.load_state(json.loads(self._store.read_text(encoding="utf-8")))
        self.lines: list[Line] = []
        self.updates: list[tuple[Any, ...]] = []

    def run(self) -> None:
        config, held_out = self.config, self.domain.problems("test")
        for arm in ARMS:
            trainer = self._service.create_lora_training_client(
                "embedded",
                rank=SMALL["lora_rank"],
                seed=config.seed,
                lora_alpha=SMALL.get("lora_alpha", 32.0),
            )
            policy = Policy(
                trainer, self.domain, enforce_schema=True, max_resamples=0, seed=config.seed
            )
            if arm == ARMS[0]:
                self._ask(UNTRAINED, policy, held_out)
            for step in range(config.rounds):
                problems = problem_batch(
                    self.domain.problems("train"), step, config.groups, config.seed
                )
                groups = policy.answers(
                    problems, size=config.group_size, temperature=1.0, key=("train", step)
                )
                rewards = self._graded(problems, groups)
                self._note(arm, f"train {step + 1}", problems, groups, rewards)
                update = rest_em_update(
                    trainer,
                    groups,
                    rewards,
                    RestEmSettings(config.epochs, config.batch_size, "constant", arm),
                    AdamParams(config.learning_rate, beta1=0.9, beta2=0.95, eps=1e-8),
                    seed=(config.seed, step),
                )
                names = ("imitated", "loss/first", "loss")
                values = [update.metrics.get(name) for name in names]
                self.updates.append((arm, step + 1, *values, update.num_tokens))
                logger.info("%s, round %d: %s", arm, step + 1, update.metrics)
            self._ask(arm, policy, held_out)

    def _ask(self, name: str, policy: Policy, problems: list[Problem]) -> None:
        """Edits of held-out passages and their rewards. All policies draw with the same seeds."""
        groups = policy.answers(
            problems, size=self.config.held_out_size, temperature=1.0, key=("eval",)
        )
        self._note(name, "held out", problems, groups, self._graded(problems, groups))

    def _graded(
        self, problems: list[Problem], groups: list[list[Trajectory]]
    ) -> list[list[Reward]]:
        answers = texts(groups)
        for start in range(0, len(problems), CHUNK):
            chunk = slice(start, start + CHUNK)
            self.domain.rewards(problems[chunk], answers[chunk])
            STORE.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self._store, json.dumps(self.domain.state()))
        return self.domain.rewards(problems, answers)

    def _note(
        self,
        policy: str,
        when: str,
        problems: Sequence[Problem],
        groups: Sequence[Sequence[Trajectory]],
        rewards: Sequence[Sequence[Reward]],
    ) -> None:
        known = self.domain.state()["known"]
        for problem, group, rewards_G in zip(problems, groups, rewards, strict=True):
            passage: Passage = problem.data
            [before] = known[json.dumps([passage.id, None, None])]
            for trajectory, reward in zip(group, rewards_G, strict=True):
                form, rate, edit = self._parsed(trajectory.text)
                # an edit that is none leaves the base model as it is
                outcomes_R = [before]
                if form is not None:
                    outcomes_R = known[json.dumps([passage.id, edit, rate])]
                done_R = [outcome for outcome in outcomes_R if outcome["failed"] is None]
                gains_R_Q = [np.subtract(o["logprobs_Q"], before["logprobs_Q"]) for o in done_R]
                self.lines.append(
                    Line(
                        **{"policy": policy, "when": when, "passage": passage.id},
                        **{"form": form, "rate": rate, "lines": len(edit.splitlines())},
                        coverage=fmean(covered(passage, edit)),
                        reward=reward.value,
                        right=by_kind(passage, [o["correct_Q"] for o in done_R]),
                        nats=by_kind(passage, gains_R_Q),
                        text=trajectory.text,
                    )
                )

    def _parsed(self, text: str) -> tuple[str | None, float | None, str]:
        try:
            edit = parse_edit(text, self.config.form, choices=self.domain.config.choices)
        except EditError:
            return None, None, ""
        return edit.form, edit.learning_rate, edit.text


def by_kind(passage: Passage, values_R_Q: Sequence[Sequence[Any]]) -> dict[str, float]:
    """Means over repeats and questions, of each kind of question and of all; nothing of none."""
    values: dict[str, list[float]] = {}
    for values_Q in values_R_Q:
        for question, value in zip(passage.questions, values_Q, strict=True):
            for kind in (ALL, question.kind):
                values.setdefault(kind, []).append(float(value))
    return {kind: fmean(of_kind) for kind, of_kind in values.items()}


def held_out_table(lines: Sequence[Line]) -> str:
    """What each policy writes about the held-out passages, and what came of it."""
    rows = []
    for policy in dict.fromkeys(line.policy for line in lines):
        mine = [line for line in lines if line.policy == policy and line.when == "held out"]
        mean, error = mean_and_error([line.reward for line in mine])
        right = mean_of(line.right.get(ALL) for line in mine)
        rows.append(
            (
                *(policy, len(mine), mean, error),
                *(mean_of(line.nats.get(kind) for line in mine) for kind in KINDS),
                None if right is None else 100 * right,
                _counted(line.form or "none" for line in mine),
                _counted(line.rate for line in mine if line.rate is not None),
                fmean(line.lines for line in mine),
                100 * fmean(line.coverage for line in mine),
            )
        )
    headers = ("policy", "edits", "reward", "s.e.", *KINDS, "right %")
    return text_table((*headers, "forms", "rates", "lines", "covered %"), rows)


def mean_of(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def differences_table(lines: Sequence[Line]) -> str:
    """Paired by held-out passage."""
    by_policy: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        if line.when == "held out":
            by_policy.setdefault(line.policy, {}).setdefault(line.passage, []).append(line.reward)
    rows = []
    for first, second in ((UNTRAINED, BEST), (UNTRAINED, RANDOM), (RANDOM, BEST)):
        if first in by_policy and second in by_policy:
            passages = list(by_policy[first])
            before, after = (
                [fmean(by_policy[policy][passage]) for passage in passages]
                for policy in (first, second)
            )
            found = paired_difference(before, after, passages)
            low, high = found.interval or (None, None)
            rows.append(
                (
                    *(f"{second} - {first}", len(passages), found.difference, low, high, found.p),
                    found.minimum_detectable,
                )
            )
    headers = ("difference", "passages", "nats", "from", "to", "p", "detectable")
    return text_table(headers, rows)


def trained_table(lines: Sequence[Line]) -> str:
    """What the edits that were chosen from were worth, by form and rate."""
    by_kind: dict[tuple[Any, ...], dict[tuple[str, str], float]] = {}
    for line in lines:
        if line.when != "held out":
            kind = (line.when, line.form or "none", line.rate)
            by_kind.setdefault(kind, {})[line.passage, line.text] = line.reward
    rows = [
        (*kind, len(rewards), *mean_and_error(list(rewards.values())))
        for kind, rewards in sorted(by_kind.items(), key=str)
    ]
    return text_table(("when", "form", "rate", "edits", "reward", "s.e."), rows)


def report(experiment: Experiment) -> Iterator[str]:
    lines = experiment.lines
    yield trained_table(lines)
    headers = ("selection", "round", "imitated", "loss first", "loss last", "tokens")
    yield text_table(headers, experiment.updates)
    yield held_out_table(lines)
    yield differences_table(lines)
    passage = next(line.passage for line in lines if line.when == "held out")
    for line in lines:
        if line.when == "held out" and line.passage == passage:
            yield f"{line.policy}, {passage}: reward {line.reward:.2f}\n{line.text}"


def carry_out_rounds(config: Rounds, service: ServiceClient) -> None:
    experiment = Experiment(config, service)
    experiment.run()
    store(config, experiment.lines)
    print("\n\n".join(report(experiment)))


def store(config: Rounds, lines: Sequence[Line]) -> None:
    """Instead of the lines of an earlier run of the same settings."""
    settings = chz.asdict(config)
    others = [r for r in read_jsonl(RESULTS, missing_ok=True) if r["settings"] != settings]
    rows = [*others, *({"settings": settings} | vars(line) for line in lines)]
    atomic_write_text(RESULTS, "".join(f"{json.dumps(row)}\n" for row in rows))


def _counted(values: Any) -> str:
    counted = Counter(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
    return ", ".join(f"{number} {name}" for name, number in sorted(counted.items()))
