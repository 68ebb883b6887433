"""What self-edits are rewarded for: adapters are trained on them, each edit once, and what came of
it is kept, since an edit's reward is a fact about its passage."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, variance
from typing import Any

from training.domains.base import Reward
from training.domains.knowledge.edit_parsing import ParsedEdit
from training.domains.knowledge.grading import Judge
from training.domains.knowledge.inner import InnerJob, InnerLoop, InnerOutcome
from training.domains.knowledge.llm_judge import log_asked_again
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.reliability import (
    RewardKind,
    reliability,
    reward,
    warn_unreliable,
)
from training.domains.knowledge.shown import Trial, note_of


class EditRewards:
    """Rewards of one `kind`. `repeats` and `eval_repeats` are inner runs of each self-edit, the
    latter about the passages of the ids `held_out`; a success gains more than `min_gain` over the
    base model, or where that is None more than the noise between repeats."""

    def __init__(
        self,
        inner: InnerLoop,
        kind: RewardKind,
        *,
        repeats: int,
        eval_repeats: int,
        held_out: set[str],
        min_gain: float | None,
    ) -> None:
        self._inner = inner
        self._kind: RewardKind = kind
        self._num_repeats = repeats
        self._eval_repeats = eval_repeats
        self._held_out = held_out
        self._min_gain = min_gain
        # the repeats of every self-edit that was carried out; of the base model there is one
        self._known: dict[str, list[InnerOutcome]] = {}
        self._warned = False

    def rewards(
        self, passages_P: Sequence[Passage], edits_P_G: Sequence[Sequence[ParsedEdit | str]]
    ) -> list[list[Reward]]:
        """Trains an adapter for every repeat of every new self-edit, all together, and asks all. An
        edit that is a text says why it is none."""
        jobs: dict[str, list[InnerJob]] = {}
        for passage, edits_G in zip(passages_P, edits_P_G, strict=True):
            for edit in (None, *edits_G):
                if not isinstance(edit, str) and (key := _key(passage, edit)) not in self._known:
                    jobs[key] = self._jobs(passage, edit)
        self._carry_out([job for jobs_R in jobs.values() for job in jobs_R], desc="self-edits")
        threshold = self._min_gain
        if threshold is None:
            threshold = self._noise(passages_P, edits_P_G)
        return [
            self._graded(passage, edits_G, threshold)
            for passage, edits_G in zip(passages_P, edits_P_G, strict=True)
        ]

    def look_up_base(self, passages: Sequence[Passage]) -> None:
        missing = [passage for passage in passages if _key(passage, None) not in self._known]
        self._carry_out([InnerJob(passage, None) for passage in missing], desc="base model")

    def repeats(self, passage: Passage) -> int:
        """Inner runs of a self-edit about it."""
        return self._eval_repeats if passage.id in self._held_out else self._num_repeats

    def base(self, passage: Passage) -> InnerOutcome | None:
        """The base model's answers; None where it was not asked yet."""
        found = self._known.get(_key(passage, None))
        return None if found is None else found[0]

    def outcomes(self, passage: Passage, edit: ParsedEdit) -> list[InnerOutcome]:
        """Of the repeats of a self-edit that was carried out."""
        return self._known[_key(passage, edit)]

    def state(self) -> dict[str, Any]:
        return {
            key: [dataclasses.asdict(outcome) for outcome in outcomes_R]
            for key, outcomes_R in self._known.items()
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._known = {
            key: [InnerOutcome(**outcome) for outcome in outcomes_R]
            for key, outcomes_R in state.items()
        }

    def ask_again(self, passages: Mapping[str, Passage], judge: Judge) -> None:
        """The judge about answers that it failed to grade; `passages` by id."""
        lacking = [
            (key, r, q)
            for key, outcomes_R in self._known.items()
            for r, outcome in enumerate(outcomes_R)
            for q, verdict in enumerate(outcome.correct_Q)
            if verdict is None
        ]
        if not lacking:
            return
        asked = []
        for key, r, q in lacking:
            passage = passages[json.loads(key)[0]]
            asked.append((passage, passage.questions[q], self._known[key][r].answers_Q[q]))
        verdicts = judge(asked)
        for (key, r, q), verdict in zip(lacking, verdicts, strict=True):
            self._known[key][r].correct_Q[q] = verdict
        log_asked_again(verdicts)

    def verdicts_line(self) -> str:
        """How many answers were graded and how many could not be."""
        verdicts = [
            v for outcomes_R in self._known.values() for o in outcomes_R for v in o.correct_Q
        ]
        line = f"Judge: {len(verdicts)} answers, {verdicts.count(None)} without a verdict"
        again = ", which are asked about again when the run is taken up again"
        return line + again * (None in verdicts)

    def reliability_line(self, trials: Sequence[Trial]) -> str:
        """Of the rewards of these edits; warns once where it is too low."""
        if self._num_repeats < 2:
            return "Reliability of the reward: unknown with repeats=1"
        by_passage: dict[str, dict[str, list[float]]] = {}
        for trial in trials:
            if not isinstance(trial.edit, str):
                values_R = self._values(trial.passage, trial.edit, self._kind)
                if len(values_R) == self._num_repeats:
                    edits = by_passage.setdefault(trial.passage.id, {})
                    edits[_key(trial.passage, trial.edit)] = values_R
        rewards_P_K_R = [list(edits.values()) for edits in by_passage.values() if len(edits) > 1]
        if not rewards_P_K_R:
            return "Reliability of the reward: unknown, no passage has two graded self-edits"
        found = reliability(rewards_P_K_R)
        if not self._warned:
            # a run shows this again and again
            warn_unreliable(found, self._kind)
            self._warned = True
        return f"Reward ({self._kind}): {found.told(self._kind)}"

    # --------------------------------------------------------------------------------- private

    def _jobs(self, passage: Passage, edit: ParsedEdit | None) -> list[InnerJob]:
        if edit is None:
            return [InnerJob(passage, None)]
        return [
            InnerJob(passage, edit.text, learning_rate=edit.learning_rate, repeat=r)
            for r in range(self.repeats(passage))
        ]

    def _carry_out(self, jobs: list[InnerJob], *, desc: str) -> None:
        found: dict[str, list[InnerOutcome]] = {}
        for job, outcome in zip(jobs, self._inner.run(jobs, desc=desc), strict=True):
            key = _key_of(job.passage, job.edit, job.learning_rate)
            found.setdefault(key, []).append(outcome)
        self._known |= found

    def _values(self, passage: Passage, edit: ParsedEdit, kind: RewardKind) -> list[float]:
        """Of the repeats that came to an end and could be graded."""
        [before] = self._known[_key(passage, None)]
        values_R = [reward(kind, after, before) for after in self.outcomes(passage, edit)]
        return [value for value in values_R if value is not None]

    def _gains(self, passage: Passage, edit: ParsedEdit) -> list[float]:
        return self._values(passage, edit, "gain" if self._kind == "accuracy" else self._kind)

    def _noise(
        self, passages_P: Sequence[Passage], edits_P_G: Sequence[Sequence[ParsedEdit | str]]
    ) -> float:
        """The standard deviation of an edit's mean gain over its repeats, pooled over edits; 0
        where nothing was repeated."""
        variances = []
        for passage, edits_G in zip(passages_P, edits_P_G, strict=True):
            for edit in edits_G:
                if not isinstance(edit, str) and len(gains_R := self._gains(passage, edit)) > 1:
                    variances.append(variance(gains_R) / len(gains_R))
        return math.sqrt(fmean(variances)) if variances else 0.0

    def _graded(
        self, passage: Passage, edits_G: Sequence[ParsedEdit | str], threshold: float
    ) -> list[Reward]:
        values_G = [
            [] if isinstance(edit, str) else self._values(passage, edit, self._kind)
            for edit in edits_G
        ]
        graded = [fmean(values_R) for values_R in values_G if values_R]
        rewards_G = []
        for edit, values_R in zip(edits_G, values_G, strict=True):
            if isinstance(edit, str):
                rewards_G.append(Reward(0.0, False, edit))
                continue
            outcomes_R = self.outcomes(passage, edit)
            note = note_of(outcomes_R, self._known[_key(passage, None)][0])
            if values_R:
                solved = fmean(self._gains(passage, edit)) > threshold
                rewards_G.append(Reward(fmean(values_R), solved, note))
            elif all(outcome.failed for outcome in outcomes_R):
                rewards_G.append(Reward(0.0, False, note))
            else:
                # no verdict is no wrong answer: it must not count against the edit
                rewards_G.append(Reward(fmean(graded) if graded else 0.0, False, note))
        return rewards_G


def _key(passage: Passage, edit: ParsedEdit | None) -> str:
    if edit is None:
        return _key_of(passage, None, None)
    return _key_of(passage, edit.text, edit.learning_rate)


def _key_of(passage: Passage, text: str | None, learning_rate: float | None) -> str:
    return json.dumps([passage.id, text, learning_rate])
