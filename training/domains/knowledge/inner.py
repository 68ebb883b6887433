"""The inner loop: an adapter for each self-edit, trained on it and its passage, then asked.

Adapters of a call train together, and all of their questions are answered in one batch. All edits
of a passage begin with the same adapter and see their lines in the same order within a repeat, so
that what they differ in is the edit (common random numbers); the next repeat has others.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from training.adapt import AdaptJob, AdaptSettings, adapt, require_adapters
from training.adapter_proof import AdapterProof
from training.api import (
    APIFuture,
    Datum,
    ForwardBackwardOutput,
    RequestFailedError,
    SampleResponse,
    SamplingClient,
    SaveWeightsForSamplerResponse,
    ServiceClient,
    TrainingClient,
)
from training.domains.knowledge.anchors import anchor_datums
from training.domains.knowledge.answers import Answerer, AnswerSettings, Item
from training.domains.knowledge.documents import (
    CAP,
    DocumentForm,
    document_texts,
    pooled_texts,
    text_datum,
)
from training.domains.knowledge.grading import Judge
from training.domains.knowledge.passages import Passage, Shot
from training.domains.knowledge.seeds import stable_seed

Preset = Literal["small", "seal"]
PRESETS: tuple[Preset, ...] = ("small", "seal")


@dataclass(frozen=True, kw_only=True)
class InnerSettings(AnswerSettings):
    """How an adapter is trained on an edit, and asked.

    `cap`: documents of an edit at most. `mask_until`: nothing up to and with it is learned of a
    text. `early_stop` holds the last document of an edit out, and stops where its loss rises.
    `adapt.anchor_weight` (kl_weight) holds the adapter to the base model's answers to questions
    about `anchors`, in the answer prompt or as lines of a self-edit.
    """

    base_model: str
    adapt: AdaptSettings
    learning_rate: float
    num_epochs: int
    seed: int
    documents: DocumentForm = "lines"
    cap: int | None = CAP
    mask_until: str = ""
    early_stop: bool = False
    anchors: tuple[Passage, ...] = ()
    anchors_as_lines: bool = False


def preset(
    name: Preset, *, base_model: str, seed: int = 0, kl_weight: float = 0.0, **changes: Any
) -> InnerSettings:
    """seal: SEAL's single-passage settings (rank 32, alpha 64, query and value projections, 10
    epochs of batch 1 at 1e-3, linear decay). small: for the embedded model, found on a few made
    passages (benchmarks/LOG.md). `changes` are other fields of InnerSettings."""
    if name == "seal":
        lora: dict[str, Any] = {
            **{"rank": 32, "lora_alpha": 64.0, "lora_dropout": 0.0},
            "target_modules": ["q_proj", "v_proj"],
        }
        settings = InnerSettings(
            base_model=base_model,
            seed=seed,
            adapt=AdaptSettings(
                lora=lora, batch_size=1, schedule="linear", anchor_weight=kl_weight
            ),
            learning_rate=1e-3,
            num_epochs=10,
            documents="seal",
        )
    elif name == "small":
        settings = InnerSettings(
            base_model=base_model,
            seed=seed,
            adapt=AdaptSettings(
                lora={"rank": 16, "lora_alpha": 32.0, "train_unembed": False},
                batch_size=4,
                anchor_weight=kl_weight,
            ),
            learning_rate=3e-3,
            num_epochs=3,
        )
    else:
        raise ValueError(f"preset={name!r}: allowed are {', '.join(PRESETS)}")
    return dataclasses.replace(settings, **changes)


@dataclass(frozen=True, kw_only=True)
class TrainedJob:
    """What an adapter that is trained is told besides its data.

    `learning_rate` and `num_epochs` None: those of the settings. `asked`: whose questions are
    asked, by default those of its own passages. `shown` is read before each question. `save_as`:
    the name of a checkpoint, which the outcome gives the place of.
    """

    learning_rate: float | None = None
    num_epochs: int | None = None
    repeat: int = 0
    asked: tuple[Passage, ...] = ()
    shown: str = ""
    save_as: str | None = None


@dataclass(frozen=True)
class InnerJob(TrainedJob):
    """One edit of one passage; None: the base model as it is, "": the passage alone."""

    passage: Passage
    edit: str | None


@dataclass(frozen=True)
class PooledJob(TrainedJob):
    """Continued pretraining: `edits_P_K` of many passages in one adapter, with or without the
    passages themselves."""

    passages_P: tuple[Passage, ...]
    edits_P_K: tuple[tuple[str, ...], ...]
    add_context: bool = True


@dataclass(frozen=True)
class DatumJob(TrainedJob):
    """Data of one's own about some passages, such as soft targets, in one adapter."""

    passages_P: tuple[Passage, ...]
    datums_D: tuple[Datum, ...]


@dataclass(frozen=True)
class SumJob:
    """The weighted sum of saved adapters, as one; nothing is trained (a local extension)."""

    terms: tuple[tuple[str, float], ...]
    asked: tuple[Passage, ...]
    shown: str = ""


Job = InnerJob | PooledJob | DatumJob | SumJob


@dataclass(frozen=True)
class InnerOutcome:
    """Over all questions asked, passage by passage; empty where the run `failed`, which says why.

    `correct_Q` is None where the judge could not say, `logprobs_Q` and `choices_Q` where they were
    not asked for. `trained_tokens` counts all epochs. `saved` is the checkpoint of a job that asks
    for one.
    """

    answers_Q: list[str] = field(default_factory=list)
    correct_Q: list[bool | None] = field(default_factory=list)
    logprobs_Q: list[float | None] = field(default_factory=list)
    choices_Q: list[bool | None] = field(default_factory=list)
    trained_tokens: int = 0
    num_documents: int = 0
    failed: str | None = None
    saved: str | None = None


class _Asked(NamedTuple):
    """What an adapter was asked for, to be waited for."""

    texts_Q: list[APIFuture[SampleResponse]]
    scored: APIFuture[ForwardBackwardOutput] | None


class InnerLoop:
    """Trains and asks the adapters of self-edits, `settings.adapt.max_parallel` at a time."""

    def __init__(
        self,
        service: ServiceClient,
        tokenizer: Any,
        settings: InnerSettings,
        judge: Judge,
        shots: Sequence[Shot],
    ) -> None:
        self._service = service
        self._tokenizer = tokenizer
        self.judge = judge
        self._proof = AdapterProof(service, settings.base_model)
        self._anchor_datums: list[Datum] | None = None
        self.answerer = Answerer(tokenizer, settings, shots)
        self.settings = settings

    def require_adapters(self) -> None:
        """Raises ValueError where the model's layers cannot have the adapters of the settings."""
        require_adapters(self._service, self.settings.base_model, self.settings.adapt)

    def run(self, jobs_J: Sequence[Job], *, desc: str = "inner runs") -> list[InnerOutcome]:
        """What each job led to. One whose training breaks (a wild learning rate, a text over the
        context) is a failed outcome, and the others go on.

        Raises ValueError for a question that does not fit into the context.
        """
        items_J = [items_of(job) for job in jobs_J]
        failures: dict[int, str] = {}
        adapt_jobs: dict[int, AdaptJob] = {}
        for j, job in enumerate(jobs_J):
            try:
                if not isinstance(job, SumJob):
                    adapt_jobs[j] = self._job(job)
            except ValueError as error:
                failures[j] = str(error)
        alive = list(adapt_jobs)
        scored: dict[int, APIFuture[ForwardBackwardOutput] | None] = {}
        saved: dict[int, APIFuture[SaveWeightsForSamplerResponse]] = {}
        asked: dict[int, _Asked] = {}

        def on_trained(index: int, trainer: TrainingClient) -> None:
            j = alive[index]
            job = jobs_J[j]
            scored[j] = self.answerer.score(items_J[j], trainer)
            if not isinstance(job, SumJob) and job.save_as is not None:
                saved[j] = trainer.save_weights_for_sampler(job.save_as)

        def on_adapted(index: int, sampler: SamplingClient) -> None:
            j = alive[index]
            asked[j] = _Asked(self.answerer.ask(items_J[j], sampler), scored.pop(j))

        def on_failed(index: int, error: RequestFailedError) -> None:
            failures[alive[index]] = str(error)

        tokens_A = adapt(
            self._service,
            self.settings.base_model,
            list(adapt_jobs.values()),
            self.settings.adapt,
            on_adapted=on_adapted,
            on_trained=on_trained,
            on_failed=on_failed,
            desc=desc,
            proof=self._proof,
        )
        tokens = dict(zip(alive, tokens_A, strict=True))
        for j, job in enumerate(jobs_J):
            if isinstance(job, SumJob):
                asked[j] = self._ask_sum(job, items_J[j])
        read = self._read(items_J, asked, failures)
        graded = iter(
            self.judge(
                [
                    (item.passage, item.question, answer.text)
                    for j in sorted(read)
                    for item, answer in zip(items_J[j], read[j], strict=True)
                ]
            )
        )
        outcomes = []
        for j in range(len(jobs_J)):
            answers_Q = read.get(j, [])
            outcomes.append(
                InnerOutcome(
                    answers_Q=[answer.text for answer in answers_Q],
                    correct_Q=[next(graded) for _ in answers_Q],
                    logprobs_Q=[answer.logprob for answer in answers_Q],
                    choices_Q=[answer.choice for answer in answers_Q],
                    trained_tokens=tokens.get(j, 0),
                    num_documents=_num_documents(adapt_jobs.get(j)),
                    failed=failures.get(j),
                    saved=saved[j].result().path if j in saved and j not in failures else None,
                )
            )
        return outcomes

    def trained_tokens(self, job: Job) -> int:
        """On how many tokens it is trained, all epochs together, if it is not stopped before."""
        if isinstance(job, SumJob):
            return 0
        if isinstance(job, DatumJob):
            lengths = [datum.model_input.length for datum in job.datums_D]
        else:
            lengths = [text_datum(self._tokenizer, t).model_input.length for t in self.texts(job)]
        epochs = self.settings.num_epochs if job.num_epochs is None else job.num_epochs
        return sum(lengths) * epochs

    def texts(self, job: InnerJob | PooledJob) -> list[str]:
        """What a job is trained on, the passages last; nothing for the base model."""
        form, cap = self.settings.documents, self.settings.cap
        if isinstance(job, PooledJob):
            return pooled_texts(
                job.passages_P, job.edits_P_K, form, cap=cap, add_context=job.add_context
            )
        if job.edit is None:
            return []
        return document_texts(job.passage, job.edit, form, cap=cap)

    def adapt_job(
        self,
        texts: Sequence[str],
        *,
        seed: int,
        learning_rate: float | None = None,
        on_top_of: str | None = None,
    ) -> AdaptJob:
        """An adapter's training on these texts, the passage last; see AdaptJob for `on_top_of`.
        Raises ValueError for a text that is longer than the model's context."""
        datums = [text_datum(self._tokenizer, t, self.settings.mask_until) for t in texts]
        return self._of_datums(
            datums, seed=seed, learning_rate=learning_rate, on_top_of=on_top_of, is_text=True
        )

    # ------------------------------------------------------------------------------------- private

    def _job(self, job: InnerJob | PooledJob | DatumJob) -> AdaptJob:
        """Raises ValueError for a text that is longer than the model's context."""
        seed = _job_seed(self.settings.seed, job)
        if isinstance(job, DatumJob):
            made = self._of_datums(job.datums_D, seed=seed, learning_rate=job.learning_rate)
        else:
            made = self.adapt_job(self.texts(job), seed=seed, learning_rate=job.learning_rate)
        if job.num_epochs is not None and made.datums_D:
            made = dataclasses.replace(made, num_epochs=job.num_epochs)
        return made

    def _of_datums(
        self,
        datums_D: Sequence[Datum],
        *,
        seed: int,
        learning_rate: float | None = None,
        on_top_of: str | None = None,
        is_text: bool = False,
    ) -> AdaptJob:
        settings, datums = self.settings, list(datums_D)
        longest = max((datum.model_input.length for datum in datums), default=0)
        if settings.context is not None and longest > settings.context:
            raise ValueError(
                f"a text to train on has {longest} tokens; the model's context is "
                f"{settings.context}"
            )
        heldout = []
        # the passage stays, and there must be another document to learn
        if is_text and settings.early_stop and len(datums) > 2:
            heldout = [datums.pop(-2)]
        return AdaptJob(
            datums_D=datums,
            learning_rate=settings.learning_rate if learning_rate is None else learning_rate,
            num_epochs=settings.num_epochs if datums else 0,
            seed=seed,
            heldout_D=heldout,
            anchors_D=self._anchors() if datums else [],
            on_top_of=on_top_of,
        )

    def _ask_sum(self, job: SumJob, items_Q: Sequence[Item]) -> _Asked:
        summed = getattr(self._service, "create_training_client_from_sum", None)
        if summed is None:
            raise ValueError("backend=tinker cannot add adapters up")
        trainer: TrainingClient = summed(list(job.terms), self.settings.base_model)
        scored = self.answerer.score(items_Q, trainer)
        sampler = trainer.save_weights_and_get_sampling_client().result()
        return _Asked(self.answerer.ask(items_Q, sampler), scored)

    def _anchors(self) -> list[Datum]:
        settings = self.settings
        if not settings.adapt.anchor_weight:
            return []
        if self._anchor_datums is None:
            base = self._service.create_sampling_client(base_model=settings.base_model)
            self._anchor_datums = anchor_datums(
                base,
                self.answerer,
                settings.anchors,
                tokenizer=self._tokenizer,
                as_lines=settings.anchors_as_lines,
            )
        return self._anchor_datums

    def _read(
        self, items_J: Sequence[list[Item]], asked: dict[int, _Asked], failures: dict[int, str]
    ) -> dict[int, Any]:
        read = {}
        for j in sorted(asked):
            try:
                read[j] = self.answerer.read(items_J[j], *asked[j])
            except RequestFailedError as error:
                failures[j] = str(error)
        return read


def items_of(job: Job) -> list[Item]:
    """The questions that its adapter gets."""
    return [
        Item(passage, question, job.shown)
        for passage in job.asked or _own(job)
        for question in passage.questions
    ]


def _own(job: Job) -> tuple[Passage, ...]:
    """What it is about; of a sum whose questions it gets."""
    if isinstance(job, SumJob):
        return job.asked
    return (job.passage,) if isinstance(job, InnerJob) else job.passages_P


def _num_documents(job: AdaptJob | None) -> int:
    return 0 if job is None else len(job.datums_D) + len(job.heldout_D)


def _job_seed(seed: int, job: InnerJob | PooledJob | DatumJob) -> int:
    """Of the adapter's weights and the order of lines: the same for all edits of a passage."""
    ids = [passage.id for passage in _own(job)]
    return stable_seed(seed, ids, job.repeat)
