"""What test-time training on ARC trains on (arXiv 2411.07279 §3 and §4)."""

from dataclasses import dataclass
from typing import Any, Literal

from training.adapt import AdaptJob, AdaptSettings
from training.api import Datum
from training.chat import RenderedTokens, datum_from_tokens, passage_weights, render_training
from training.domains.arc.answers import Answerer, AnswerSettings
from training.domains.arc.examples import ExampleSet, adapter_seed, build_examples
from training.domains.arc.grids import FAMILIES
from training.domains.arc.tasks import Task
from training.domains.arc.text import demonstration_pieces

Method = Literal["baseline", "ttt", "shared_ttt", "e2e", "shared_e2e"]
METHODS: tuple[Method, ...] = ("baseline", "ttt", "shared_ttt", "e2e", "shared_e2e")
SHARED = ("shared_ttt", "shared_e2e")
# d = (x_j, y_j): no demonstrations, neither in training nor in answering
DIRECT = ("e2e", "shared_e2e")
SHARED_NAME = "shared"
TRAINED = ("ttt", *SHARED, "e2e")


@dataclass(frozen=True, kw_only=True)
class TTTSettings(AnswerSettings):
    """How tasks are trained on; `cap` bounds the examples of each."""

    base_model: str
    method: Method
    transformations: bool
    demonstration_loss: bool
    cap: int
    permute_n: int
    learning_rate: float
    num_epochs: int
    adapt: AdaptSettings


@dataclass(frozen=True)
class Prepared:
    """A task, its training examples and their tokens; both are empty for the baseline."""

    task: Task
    examples: ExampleSet
    datums_D: list[Datum]


class TrainingData:
    """Turns tasks into training data for one model."""

    def __init__(self, tokenizer: Any, answerer: Answerer, settings: TTTSettings) -> None:
        self._tokenizer = tokenizer
        self._answerer = answerer
        self.settings = settings

    def prepare(self, task: Task) -> Prepared:
        if self.settings.method not in TRAINED:
            return Prepared(task, ExampleSet([], {}, 0, 0), [])
        examples = self.examples(task)
        datums = [datum_from_tokens(*self.rendered(example)) for example in examples.tasks]
        return Prepared(task, examples, datums)

    def examples(self, task: Task) -> ExampleSet:
        """Leave-one-out sets, topped up to the cap by leave-two-out ones; for direct training each
        demonstration by itself."""
        settings = self.settings
        return build_examples(
            task,
            tuple(FAMILIES) if settings.transformations else (),
            leave_n=(len(task.train),) if settings.method in DIRECT else (1, 2),
            permute_n=settings.permute_n,
            combine="marc",
            cap=settings.cap,
            seed=settings.seed,
            fits=lambda t: self._length(t) < settings.max_example_tokens,
        )

    def rendered(self, example: Task) -> RenderedTokens:
        """The example's tokens, with weights on its answer and, for the demonstration loss, on the
        outputs of all demonstrations but the first, which nothing leads to."""
        conversation = self._answerer.conversation(example)
        tokens, weights = render_training(self._tokenizer, conversation, train_on="last_assistant")
        if self.settings.demonstration_loss and len(example.train) > 1:
            pieces = demonstration_pieces(example, self.settings.grid_format)
            first = next(i for i, piece in enumerate(pieces) if piece.is_output)
            passages = [
                (piece.text, piece.is_output and i > first) for i, piece in enumerate(pieces)
            ]
            of_prompt = passage_weights(self._tokenizer, conversation[:-1], passages)
            assert not any(weights[: len(of_prompt)])
            weights[: len(of_prompt)] = of_prompt
        return RenderedTokens(tokens, weights)

    def _length(self, example: Task) -> int:
        # most of what is generated is never trained on: weights would cost several times as much
        conversation = self._answerer.conversation(example)
        return len(render_training(self._tokenizer, conversation, train_on="all_tokens").tokens)

    def job(self, prepared: Prepared) -> AdaptJob:
        return self._job(prepared.datums_D, prepared.task.id)

    def shared_job(self, prepared: list[Prepared]) -> AdaptJob:
        """One adapter for all of these tasks."""
        return self._job([datum for p in prepared for datum in p.datums_D], SHARED_NAME)

    def _job(self, datums_D: list[Datum], name: str) -> AdaptJob:
        return AdaptJob(
            datums_D=datums_D,
            learning_rate=self.settings.learning_rate,
            num_epochs=self.settings.num_epochs,
            seed=adapter_seed(self.settings.seed, name),
        )
