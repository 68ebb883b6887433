"""What a family of tasks offers: tasks, sequences, losses and exact predictors.

Shapes: B sequences, C=context_length, P positions that are predicted, V numbers per prediction.
Predictions of models and of predictors have one form (B, P, V): log-probabilities of the K kinds of
balls (P=C, V=K), expected y (P=C, V=1), log-probabilities of the two labels (P=1, V=2).
Everything here lies on the CPU, so that the same seed gives the same sequences on every device;
what a model reads is float32 or int64, truth and exact predictions are float64.
"""

from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from training.icl.settings import Setting

Predictor = Literal["generalizing", "memorizing", "constant"]
PREDICTORS: tuple[Predictor, ...] = ("generalizing", "memorizing", "constant")


class TaskSet(NamedTuple):
    """M tasks, one row in each tensor, and the log of how often each is drawn (M,)."""

    values: dict[str, Tensor]
    log_prior: Tensor


class Batch(NamedTuple):
    """B sequences. `inputs` is what a model reads: (B, L) token ids, or (B, L, F) vectors."""

    inputs: Tensor
    targets: Tensor  # what training learns from: (B, P), next tokens, noisy y or labels
    truth: Tensor  # what evaluation compares with: (B, P, V), urns, y without noise, 1 at the label
    task_ids: Tensor  # (B,) rows of the task set (classification: the query's); -1 without a set


class Family(Protocol):
    """One setting's data and its mathematics; make_family(setting) makes it."""

    input_kind: Literal["tokens", "vectors"]
    input_size: int  # size of the vocabulary, or F
    input_length: int  # L
    output_size: int  # what a model's head gives per input position
    num_positions: int  # P
    task_fields: tuple[str, ...]  # of the setting, that shape tasks beside dims, number and seed
    task_shapes: dict[str, tuple[int, ...]]  # of one row of each tensor of a task set

    @property
    def setting(self) -> Setting: ...

    def sample_tasks(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Rows of `count` new tasks."""
        ...

    def sample(
        self,
        tasks: TaskSet | None,
        batch_size: int,
        generator: torch.Generator,
        *,
        task_ids: Tensor | None = None,
        query_in_context: bool = True,
    ) -> Batch:
        """New sequences: of tasks drawn by the prior, of `task_ids` where given (B,), of a new task
        each where `tasks` is None. query_in_context=False is for classification alone: the query's
        pair is not among the items. Raises ValueError where these do not fit together."""
        ...

    def predictions(self, output: Tensor) -> Tensor:
        """A model's raw output (B, L, output_size) as predictions (B, P, V)."""
        ...

    def training_loss(self, output: Tensor, batch: Batch) -> Tensor:
        """The scalar that training minimises, mean over B and P, of a model's raw output."""
        ...

    def loss(self, predictions: Tensor, batch: Batch) -> Tensor:
        """(B, P), against the truth: KL in nats, squared error / D, or cross-entropy."""
        ...

    def divergence(self, one: Tensor, other: Tensor) -> Tensor:
        """(B, P) between predictions, symmetric: symmetrised KL, or squared difference / D."""
        ...

    def predict(self, which: Predictor, batch: Batch, tasks: TaskSet | None) -> Tensor:
        """Exact predictions (B, P, V), each position from what stands before it, read from
        batch.inputs; memorizing needs `tasks`, with their prior (else ValueError)."""
        ...


class InContextModel(Protocol):
    """A torch module that Training trains."""

    def __call__(self, inputs: Tensor, *, output_hidden_states: bool = False) -> Any:
        """Raw output (B, L, output_size); with output_hidden_states a pair with the states
        (num_layers + 1 tensors (B, L, H))."""
        ...
