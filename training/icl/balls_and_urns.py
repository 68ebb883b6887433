"""Balls and urns: sequences of draws with replacement from an urn whose contents must be inferred.

A task is a distribution theta over K kinds of balls, drawn from Dirichlet(alpha, ..., alpha). A
sequence of C draws s_1..s_C is read as [BOS, s_1, ..., s_(C-1)], BOS = K, and each position
predicts the next draw. A model is trained on the draws over all K + 1 tokens; it is evaluated
against theta itself, its probabilities renormalised over the K kinds. (Wurgaft et al., arXiv
2506.17859)
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.icl.base import Batch, Predictor, TaskSet
from training.icl.chunks import in_chunks
from training.icl.metrics import needed_tasks, symmetrised_kl
from training.icl.settings import BallsAndUrns
from training.icl.tasks import draw_tasks

# A kind of ball that an urn all but lacks: keeps logarithms finite where alpha is small
SMALLEST = 1e-12


class BallsAndUrnsFamily:
    """See `training.icl.base.Family`; task sets hold "urns" (M, K), rows that sum to 1."""

    input_kind: Literal["tokens", "vectors"] = "tokens"
    task_fields: tuple[str, ...] = ("dirichlet_alpha",)

    def __init__(self, setting: BallsAndUrns) -> None:
        self.setting = setting
        self.num_kinds = setting.num_dims
        self.bos = setting.num_dims
        self.input_size = self.output_size = setting.num_dims + 1
        self.input_length = setting.input_length
        self.num_positions = setting.context_length
        self.task_shapes: dict[str, tuple[int, ...]] = {"urns": (setting.num_dims,)}

    def sample_tasks(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        alpha = self.setting.dirichlet_alpha
        if alpha == 1:
            urns_MK = torch.empty(count, self.num_kinds, dtype=torch.float64)
            urns_MK.exponential_(generator=generator)
        else:
            # torch draws Dirichlet variables from the global generator alone
            seed = int(torch.randint(2**63 - 1, (), generator=generator))
            drawn = np.random.default_rng(seed).dirichlet([alpha] * self.num_kinds, size=count)
            urns_MK = torch.from_numpy(drawn)
        urns_MK = (urns_MK / urns_MK.sum(-1, keepdim=True)).clamp_min(SMALLEST)
        return {"urns": urns_MK / urns_MK.sum(-1, keepdim=True)}

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
            raise ValueError("query_in_context=False: balls and urns have no query")
        rows, ids_B = draw_tasks(self, tasks, batch_size, generator, task_ids)
        length = self.setting.context_length
        draws_BC = torch.multinomial(rows["urns"], length, replacement=True, generator=generator)
        bos_B1 = torch.full((batch_size, 1), self.bos)
        truth_BCK = rows["urns"][:, None].expand(-1, length, -1)
        return Batch(torch.cat([bos_B1, draws_BC[:, :-1]], dim=1), draws_BC, truth_BCK, ids_B)

    def predictions(self, output: Tensor) -> Tensor:
        return output[..., : self.num_kinds].float().log_softmax(-1)

    def training_loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), batch.targets.flatten())

    def loss(self, predictions: Tensor, batch: Batch) -> Tensor:
        """KL(theta || predictions), nats."""
        urns = batch.truth
        return (urns * (urns.log() - predictions)).sum(-1)

    def divergence(self, one: Tensor, other: Tensor) -> Tensor:
        return symmetrised_kl(one, other)

    def predict(self, which: Predictor, batch: Batch, tasks: TaskSet | None) -> Tensor:
        """generalizing: (count_i + alpha) / (n + K alpha), the mean of the posterior under the
        Dirichlet. memorizing: the mean of the posterior over the M urns. constant: 1/K."""
        # BOS counts for nothing, so position 0 has seen no draw
        seen_BCK = F.one_hot(batch.inputs, self.num_kinds + 1)[..., : self.num_kinds].double()
        if which == "constant":
            return torch.full_like(seen_BCK, 1 / self.num_kinds).log()
        if which == "generalizing":
            weights_BCK = seen_BCK.cumsum(1) + self.setting.dirichlet_alpha
            return (weights_BCK / weights_BCK.sum(-1, keepdim=True)).log()
        urns_MK, log_prior_M = needed_tasks(which, tasks, "urns")
        log_urns_KM = urns_MK.log().T

        def posterior_mean(seen: Tensor) -> Tensor:
            log_weights = log_prior_M + seen.cumsum(1) @ log_urns_KM
            return (log_weights.softmax(-1) @ urns_MK).log()

        # the logits, their softmax and what torch holds between
        row_bytes = 3 * 8 * seen_BCK.shape[1] * len(urns_MK)
        return in_chunks(posterior_mean, row_bytes, seen_BCK)
