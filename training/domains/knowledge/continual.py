"""Continual self-edits: S sequences of K passages, each passage learned after those before it.

All sequences of a step train together, and everything that is asked after a step is asked in one
batch. What a step leaves are adapter folders, so that the next one, and a run that was ended in
between, starts from what is on disk.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, Self

from training.adapt import AdaptJob, adapt
from training.adapter_proof import AdapterProof
from training.api import (
    APIFuture,
    ModelInput,
    RequestFailedError,
    SampleResponse,
    SamplingClient,
    SaveWeightsForSamplerResponse,
    TrainingClient,
)
from training.chat import render_raw_prompt
from training.domains.knowledge.answers import Item
from training.domains.knowledge.bm25 import Bm25
from training.domains.knowledge.continual_gate import GateSearch
from training.domains.knowledge.continual_methods import Method
from training.domains.knowledge.documents import document_texts
from training.domains.knowledge.edit_parsing import EditError, parse_edit
from training.domains.knowledge.forms import Choices
from training.domains.knowledge.grading import Judge
from training.domains.knowledge.inner import InnerLoop
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.seeds import stable_seed
from training.domains.knowledge.soft_targets import ask_teacher, taught

# what a model of general English says more or less of, whatever it learned last
PROBE_TEXT = (
    "Water boils when it is hot enough, and it freezes when it is cold. In spring the days grow "
    "longer, the trees have new leaves, and birds build their nests. A week has seven days and a "
    "year has twelve months. When people are ill they see a doctor; when they are hungry they eat. "
    "London is the capital of England, and Paris is the capital of France. The sun rises in the "
    "east and sets in the west."
)


@dataclass(frozen=True)
class Edit:
    """What is trained on besides the passage; `note` says why that is nothing, where it failed."""

    text: str
    learning_rate: float | None = None
    note: str = ""

    @classmethod
    def of(cls, written: str, form: str, choices: Choices) -> Self:
        """What a model wrote; where that is no edit of the form, nothing, and why."""
        try:
            parsed = parse_edit(written, form, choices=choices)
        except EditError as error:
            return cls("", note=str(error))
        return cls(parsed.text, parsed.learning_rate)


@dataclass(frozen=True)
class Row:
    """What is known in one sequence after a step: verdicts on the questions of each of its K
    passages (None: not asked), on those of passages that are never learned, and the probe text's
    mean log-probability in nats per token. `answers_Q` are those about the passage just learned."""

    correct_K_Q: list[list[bool | None] | None]
    probe_Q: list[bool | None]
    text_nats: float
    answers_Q: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What a step did in one sequence. `adapters` are the folders it goes on with: one of all that
    was learned, of a library one for each passage ("": its training failed), none while it is the
    base model. `scale` is what a gate let in, 0 where it refused; `failed` says why nothing was
    learned; `edits_failed` counts the self-edits of the step that were none."""

    adapters: list[str]
    edit: Edit
    row: Row
    trained_tokens: int
    scale: float = 1.0
    failed: str | None = None
    edits_failed: int = 0


class Before(NamedTuple):
    """Where a sequence stands: its adapters, its row, and its edits up to the one to be learned."""

    adapters: Sequence[str]
    row: Row
    edits: Sequence[Edit]


class _Asked(NamedTuple):
    """Questions to one adapter, by their places in the row."""

    items: list[Item]
    places: list[int]


class Continual:
    """Steps of S sequences of K passages each; `untouched` are passages that nothing is learned of.

    `ask_ahead` asks about passages that are still to be learned as well. `budget`: what a gate lets
    an edit cost, by default BUDGETS.
    """

    def __init__(
        self,
        service: Any,
        tokenizer: Any,
        inner: InnerLoop,
        judge: Judge,
        sequences_S_K: Sequence[Sequence[Passage]],
        untouched: Sequence[Passage],
        *,
        seed: int = 0,
        ask_ahead: bool = False,
        budget: float | None = None,
        run_path: Path | None = None,
    ) -> None:
        self._service = service
        self._tokenizer = tokenizer
        self._inner = inner
        self._judge = judge
        self._sequences = sequences_S_K
        self._untouched = [Item(p, question) for p in untouched for question in p.questions]
        self._seed = seed
        self._ask_ahead = ask_ahead
        self._budget = budget
        self._base_model = inner.settings.base_model
        self._proof = AdapterProof(service, self._base_model, run_path)

    def before_all(self) -> list[Row]:
        """Of each sequence: the base model on all of its passages."""
        rows = self._rows({s: [] for s in range(len(self._sequences))}, 0, is_library=False)
        for row in rows.values():
            if isinstance(row, str):
                raise RequestFailedError(f"the model before all self-edits: {row}")
        return [row for _, row in sorted(rows.items()) if isinstance(row, Row)]

    def sampler(self, method: Method, adapters: Sequence[str]) -> SamplingClient:
        """The model with these adapters, as a writer; of a library, the base model."""
        return self._sampler("" if method.kind == "library" else _only(adapters))

    def step(self, method: Method, number: int, before_S: Sequence[Before]) -> list[Outcome]:
        """The step `number`, from 1, in every sequence."""
        is_library = method.kind == "library"
        failures: dict[int, str] = {}
        jobs: dict[int, AdaptJob] = {}
        for s, before in enumerate(before_S):
            try:
                jobs[s] = self._job(method, s, number, before)
            except ValueError as error:
                failures[s] = str(error)
        if method.kind == "distill":
            self._distill(jobs, number, before_S, failures)
        folders, tokens = self._train(jobs, f"{method.label}, step {number}", failures)
        scales = dict.fromkeys(folders, 1.0)
        if method.gate is not None and number > 1:
            gate = GateSearch(
                *(self._service, self._inner, self._judge, method.gate),
                budget=self._budget,
            )
            learned = {s: self._items(s, range(number - 1)) for s in folders}
            known = {s: _verdicts(before_S[s].row, number - 1) for s in folders}
            below = {s: _only(before_S[s].adapters) for s in folders}
            folders, scales = gate.scaled(folders, below, learned, known)
        adapters = {
            s: self._adapters(is_library, before.adapters, folders.get(s))
            for s, before in enumerate(before_S)
        }
        rows = self._rows(adapters, number, is_library=is_library)
        broken = {s: row for s, row in rows.items() if isinstance(row, str)}
        if broken:
            # what was trained does not answer, so what was there before stays
            failures |= broken
            kept = {s: self._adapters(is_library, before_S[s].adapters, None) for s in broken}
            adapters |= kept
            rows |= self._rows(kept, number, is_library=is_library)
        outcomes = []
        for s, before in enumerate(before_S):
            row = rows[s]
            new = before.edits if method.kind == "joint" else before.edits[-1:]
            if isinstance(row, str):
                raise RequestFailedError(f"sequence {s + 1}, what was learned before: {row}")
            outcomes.append(
                Outcome(
                    adapters[s],
                    before.edits[-1],
                    row,
                    tokens.get(s, 0),
                    scales.get(s, 0.0),
                    failures.get(s),
                    edits_failed=sum(bool(edit.note) for edit in new),
                )
            )
        return outcomes

    def texts(self, method: Method, s: int, number: int, edits: Sequence[Edit]) -> list[str]:
        """What step `number` trains on in sequence s, the passage last."""
        learned = [
            self._documents(passage, edit)
            for passage, edit in zip(self._sequences[s][:number], edits, strict=True)
        ]
        if method.kind == "joint":
            return [text for texts in learned for text in texts]
        rng = random.Random(f"replay/{self._seed}/{s}/{number}")
        replayed = [
            text
            for texts in learned[:-1]
            for text in rng.sample(texts, min(method.num_replayed, len(texts)))
        ]
        return [*replayed, *learned[-1]]

    def _documents(self, passage: Passage, edit: Edit) -> list[str]:
        settings = self._inner.settings
        return document_texts(passage, edit.text, settings.documents, cap=settings.cap)

    # ------------------------------------------------------------------------------------ training

    def _job(self, method: Method, s: int, number: int, before: Before) -> AdaptJob:
        on_top = method.kind not in ("library", "joint")
        return self._inner.adapt_job(
            self.texts(method, s, number, before.edits),
            # the same for all methods, so that they differ in nothing else
            seed=stable_seed("adapter", self._seed, s, number),
            learning_rate=None if method.kind == "joint" else before.edits[-1].learning_rate,
            on_top_of=(_only(before.adapters) or None) if on_top else None,
        )

    def _distill(
        self,
        jobs: dict[int, AdaptJob],
        number: int,
        before_S: Sequence[Before],
        failures: dict[int, str],
    ) -> None:
        """Puts what the model before says, with the passage before it, in the place of the texts'
        own tokens."""
        asked: dict[int, list[APIFuture[SampleResponse]]] = {}
        for s, job in list(jobs.items()):
            passage = self._sequences[s][number - 1]
            shown = f"{passage.title}\n{passage.context}\n\n"
            teacher = self._sampler(_only(before_S[s].adapters))
            try:
                asked[s] = ask_teacher(self._tokenizer, teacher, shown, job.datums_D)
            except ValueError as error:
                failures[s] = f"what the teacher reads: {error}"
                del jobs[s]
        for s, futures_D in asked.items():
            jobs[s] = dataclasses.replace(jobs[s], datums_D=taught(jobs[s].datums_D, futures_D))

    def _train(
        self, jobs: Mapping[int, AdaptJob], desc: str, failures: dict[int, str]
    ) -> tuple[dict[int, str], dict[int, int]]:
        """The folders of the trained adapters, and the numbers of trained tokens."""
        order = list(jobs)
        saved: dict[int, APIFuture[SaveWeightsForSamplerResponse]] = {}

        def on_trained(index: int, trainer: TrainingClient) -> None:
            saved[order[index]] = trainer.save_weights_for_sampler("trained")

        def on_failed(index: int, error: RequestFailedError) -> None:
            saved.pop(order[index], None)
            failures[order[index]] = str(error)

        tokens = adapt(
            self._service,
            self._base_model,
            [jobs[s] for s in order],
            self._inner.settings.adapt,
            on_adapted=lambda index, sampler: None,
            on_trained=on_trained,
            on_failed=on_failed,
            desc=desc,
            proof=self._proof,
        )
        folders = {s: future.result().path for s, future in sorted(saved.items())}
        return folders, dict(zip(order, tokens, strict=True))

    @staticmethod
    def _adapters(is_library: bool, before: Sequence[str], folder: str | None) -> list[str]:
        if is_library:
            return [*before, folder or ""]
        return [folder] if folder else list(before)

    # --------------------------------------------------------------------------------------- asking

    def _rows(
        self, adapters: Mapping[int, Sequence[str]], number: int, *, is_library: bool
    ) -> dict[int, Row | str]:
        """After step `number`, by sequence; what went wrong where an adapter cannot answer."""
        asked: dict[int, list[tuple[_Asked, list[APIFuture[Any]]]]] = {}
        text_logprobs: dict[int, APIFuture[list[float | None]]] = {}
        own: dict[int, list[Item]] = {}
        # of one folder, base model included, however many sequences ask it
        samplers: dict[str, SamplingClient] = {}
        probe = ModelInput.from_ints(render_raw_prompt(self._tokenizer, PROBE_TEXT))
        num_passages = len(self._sequences[0])
        num_asked = num_passages if self._ask_ahead or number == 0 else number
        for s, folders in adapters.items():
            own[s] = self._items(s, range(num_asked))
            items = [*own[s], *self._untouched]
            routed = self._routed(s, [_query(item) for item in items], folders, is_library)
            groups: dict[str, _Asked] = {}
            for place, (item, folder) in enumerate(zip(items, routed, strict=True)):
                group = groups.setdefault(folder, _Asked([], []))
                group.items.append(item)
                group.places.append(place)
            [text_folder] = self._routed(s, [PROBE_TEXT], folders, is_library)
            for folder in {**groups, text_folder: None}:
                if folder not in samplers:
                    samplers[folder] = self._sampler(folder)
            asked[s] = [
                (group, self._inner.answerer.ask(group.items, samplers[folder]))
                for folder, group in groups.items()
            ]
            text_logprobs[s] = samplers[text_folder].compute_logprobs(probe)
        rows: dict[int, Row | str] = {}
        for s in adapters:
            try:
                texts = self._read(asked[s])
                nats = text_logprobs[s].result()[1:]
            except RequestFailedError as error:
                rows[s] = str(error)
                continue
            rows[s] = self._row(s, number, own[s], texts, fmean(p for p in nats if p is not None))
        return rows

    def _read(self, groups: Sequence[tuple[_Asked, list[APIFuture[Any]]]]) -> list[str]:
        """The answers in the order of their places."""
        by_place: dict[int, str] = {}
        for group, futures in groups:
            answers = self._inner.answerer.read(group.items, futures, None)
            by_place |= {
                place: answer.text for place, answer in zip(group.places, answers, strict=True)
            }
        return [by_place[place] for place in sorted(by_place)]

    def _row(
        self, s: int, number: int, own: Sequence[Item], texts: Sequence[str], text_nats: float
    ) -> Row:
        items = [*own, *self._untouched]
        asked = [(i.passage, i.question, text) for i, text in zip(items, texts, strict=True)]
        verdicts = self._judge(asked)
        correct_K_Q: list[list[bool | None] | None] = []
        start, learned = 0, slice(0, 0)
        for k, passage in enumerate(self._sequences[s]):
            end = start + len(passage.questions)
            correct_K_Q.append(list(verdicts[start:end]) if end <= len(own) else None)
            if k == number - 1:
                learned = slice(start, end)
            start = end
        probe_Q = list(verdicts[len(own) :])
        return Row(correct_K_Q, probe_Q, text_nats, list(texts[learned]))

    def _routed(
        self, s: int, queries: Sequence[str], folders: Sequence[str], is_library: bool
    ) -> list[str]:
        """For each query the adapter that answers it; "": the base model."""
        if not is_library or not folders:
            return [_only(folders)] * len(queries)
        router = Bm25([f"{p.title}\n{p.context}" for p in self._sequences[s][: len(folders)]])
        found = [router.best(query) for query in queries]
        return ["" if best is None else folders[best] for best in found]

    def _items(self, s: int, places: Sequence[int]) -> list[Item]:
        passages = [self._sequences[s][k] for k in places]
        return [Item(passage, question) for passage in passages for question in passage.questions]

    def _sampler(self, folder: str) -> SamplingClient:
        return self._service.create_sampling_client(folder or None, self._base_model)


def _query(item: Item) -> str:
    """What the model is told, too."""
    return f"{item.passage.title}\n{item.question.text}"


def _only(adapters: Sequence[str]) -> str:
    """The folder of all that was learned; "" where that is nothing."""
    assert len(adapters) <= 1
    return adapters[0] if adapters else ""


def _verdicts(row: Row, num_passages: int) -> list[bool | None]:
    return [v for correct_Q in row.correct_K_Q[:num_passages] for v in correct_Q or []]
