"""Linear regression: predict y from x after some pairs (x, y) of one linear function with noise.

A task is w ~ N(0, I) of D dimensions. x_k ~ N(0, I) and y_k = w.x_k + noise of variance s2,
k = 1..C. A sequence is read as x_1, y_1, x_2, ..., x_C, vectors of D + 1 numbers: x as (0, x), y as
(y, 0, ..., 0); the last y is not read. Predictions of y_k stand at x_k. A model is trained on the
noisy y; it is evaluated against w.x, squared error divided by D, which is 1 on average for who
always says 0. (Raventós et al., arXiv 2306.15063)
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.icl.base import Batch, Predictor, TaskSet
from training.icl.chunks import in_chunks
from training.icl.metrics import needed_tasks
from training.icl.settings import LinearRegression
from training.icl.tasks import draw_tasks


class LinearRegressionFamily:
    """See `training.icl.base.Family`; task sets hold "weights" (M, D)."""

    input_kind: Literal["tokens", "vectors"] = "vectors"
    task_fields: tuple[str, ...] = ()
    output_size = 1

    def __init__(self, setting: LinearRegression) -> None:
        self.setting = setting
        self.num_dims = setting.num_dims
        self.input_size = setting.num_dims + 1
        self.input_length = setting.input_length
        self.num_positions = setting.context_length
        self.task_shapes: dict[str, tuple[int, ...]] = {"weights": (setting.num_dims,)}

    def sample_tasks(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        shape = (count, self.num_dims)
        return {"weights": torch.randn(shape, generator=generator, dtype=torch.float64)}

    def sample(
        self,
        tasks: TaskSet | None,
        batch_size: int,
        generator: torch.Generator,
        *,
        task_ids: Tensor | None = None,
        query_in_context: bool = True,
    ) -> Batch:
        if not query_in_context:
            raise ValueError("query_in_context=False: every x of linear regression is a query")
        rows, ids_B = draw_tasks(self, tasks, batch_size, generator, task_ids)
        shape = (batch_size, self.setting.context_length)
        # float32 first: models and predictors then read the same x
        x_BCD = torch.randn(*shape, self.num_dims, generator=generator)
        truth_BC1 = x_BCD.double() @ rows["weights"][:, :, None]
        noise_BC = torch.randn(shape, generator=generator, dtype=torch.float64)
        y_BC = truth_BC1[..., 0] + self.setting.noise_variance**0.5 * noise_BC
        y_BC = y_BC.float()
        inputs_BLF = torch.zeros(batch_size, self.input_length, self.input_size)
        inputs_BLF[:, ::2, 1:] = x_BCD
        inputs_BLF[:, 1::2, 0] = y_BC[:, :-1]
        return Batch(inputs_BLF, y_BC, truth_BC1, ids_B)

    def predictions(self, output: Tensor) -> Tensor:
        return output[:, ::2].float()

    def training_loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(output[:, ::2, 0], batch.targets)

    def loss(self, predictions: Tensor, batch: Batch) -> Tensor:
        """(prediction - w.x)^2 / D."""
        return (predictions - batch.truth).square().sum(-1) / self.num_dims

    def divergence(self, one: Tensor, other: Tensor) -> Tensor:
        return (one - other).square().sum(-1) / self.num_dims

    def predict(self, which: Predictor, batch: Batch, tasks: TaskSet | None) -> Tensor:
        """generalizing: ridge regression with lambda = s2, the mean of the posterior under N(0, I).
        memorizing: dMMSE, the mean of the posterior over the M weight vectors. constant: 0."""
        x_BCD = batch.inputs[:, ::2, 1:].double()
        if which == "constant":
            return torch.zeros_like(x_BCD[..., :1])
        # y_k is known after position k: a zero stands for the last one, which nobody reads
        y_BC = F.pad(batch.inputs[:, 1::2, 0].double(), (0, 1))
        length = x_BCD.shape[1]
        if which == "generalizing":
            row_bytes = 3 * 8 * length * self.num_dims**2
            return in_chunks(self._ridge, row_bytes, x_BCD, y_BC)
        weights_MD, log_prior_M = needed_tasks(which, tasks, "weights")

        def posterior_mean(x: Tensor, y: Tensor) -> Tensor:
            said_bCM = x @ weights_MD.T
            misfit_bCM = _before((y[..., None] - said_bCM).square())
            log_weights = log_prior_M - misfit_bCM / (2 * self.setting.noise_variance)
            return (log_weights.softmax(-1) * said_bCM).sum(-1, keepdim=True)

        return in_chunks(posterior_mean, 5 * 8 * length * len(weights_MD), x_BCD, y_BC)

    def _ridge(self, x_bCD: Tensor, y_bC: Tensor) -> Tensor:
        squares_bCDD = _before(x_bCD[..., :, None] * x_bCD[..., None, :])
        products_bCD = _before(x_bCD * y_bC[..., None])
        penalty_DD = self.setting.noise_variance * torch.eye(self.num_dims, dtype=torch.float64)
        factor_bCDD = torch.linalg.cholesky(squares_bCDD + penalty_DD)
        weights_bCD = torch.cholesky_solve(products_bCD[..., None], factor_bCDD)[..., 0]
        return (weights_bCD * x_bCD).sum(-1, keepdim=True)


def _before(terms_bC: Tensor) -> Tensor:
    """Sums over the positions before each one (dimension 1)."""
    sums = torch.zeros_like(terms_bC)
    sums[:, 1:] = terms_bC[:, :-1].cumsum(1)
    return sums
