"""Classification: label a query after C - 1 labelled items, from the context or from memory.

A task set holds M pairs of a centre mu ~ N(0, I/D) and a label, 0 or 1 with equal chance. A
sequence is C - 1 items of pairs drawn by the prior with replacement, and a query that copies the
pair of one of them, every position being as likely. Each item, and the query, is its centre with
noise of its own: x = (mu + sqrt(v) n) / sqrt(1 + v), n ~ N(0, I/D), v = within_variance; so the
items themselves are N(0, I/D). A model reads vectors (x, label), with -1 for the query's label, and
answers at the query. (Wurgaft et al., arXiv 2506.17859)

Without query_in_context (in-weights evaluation) the query's pair is drawn by the prior and the
items come from the other pairs: who only copies can but guess.
num_tasks=inf: the C - 1 items of a sequence belong to C - 1 different new pairs, which is the world
in which the generalizing predictor is exactly right; without query_in_context the query has a pair
of its own.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.icl.base import Batch, Predictor, TaskSet
from training.icl.metrics import needed_tasks, symmetrised_kl
from training.icl.priors import draw_ids
from training.icl.settings import Classification
from training.icl.tasks import chosen_ids

# Probabilities are kept this far from 0 and 1, as in the paper's code: one sure mistake of a
# predictor among many queries would otherwise be an infinite loss
SMALLEST = 1e-5


class ClassificationFamily:
    """See `training.icl.base.Family`; task sets hold "centers" (M, D) and "labels" (M,), 0 or 1.

    The task of a sequence is its query's pair.
    """

    input_kind: Literal["tokens", "vectors"] = "vectors"
    task_fields: tuple[str, ...] = ()
    output_size = 2
    num_positions = 1

    def __init__(self, setting: Classification) -> None:
        self.setting = setting
        self.num_dims = setting.num_dims
        self.input_size = setting.num_dims + 1
        self.input_length = setting.input_length
        self.task_shapes: dict[str, tuple[int, ...]] = {
            "centers": (setting.num_dims,),
            "labels": (),
        }

    def sample_tasks(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        shape = (count, self.num_dims)
        centers_MD = torch.randn(shape, generator=generator, dtype=torch.float64)
        labels_M = torch.randint(2, (count,), generator=generator)
        return {"centers": centers_MD / self.num_dims**0.5, "labels": labels_M}

    def sample(
        self,
        tasks: TaskSet | None,
        batch_size: int,
        generator: torch.Generator,
        *,
        task_ids: Tensor | None = None,
        query_in_context: bool = True,
    ) -> Batch:
        num_items = self.setting.context_length - 1
        position_B1 = torch.randint(num_items, (batch_size, 1), generator=generator)
        if tasks is None:
            if task_ids is not None:
                raise ValueError("task_ids: without a task set (num_tasks=inf) none can be chosen")
            pairs = self.sample_tasks(batch_size * (num_items + 1), generator)
            ids_BC = torch.arange(batch_size * (num_items + 1)).view(batch_size, -1)
            if query_in_context:
                ids_BC[:, -1:] = ids_BC.gather(1, position_B1)
            query_ids_B = torch.full((batch_size,), -1)
        else:
            pairs = tasks.values
            ids_BC = self._draw_pairs(
                tasks, position_B1, generator, task_ids, query_in_context=query_in_context
            )
            query_ids_B = ids_BC[:, -1]
        centers_BCD = pairs["centers"][ids_BC]
        noise_BCD = torch.randn(centers_BCD.shape, generator=generator)
        spread = self.setting.within_variance / self.num_dims
        items_BCD = (centers_BCD + spread**0.5 * noise_BCD) / (
            1 + self.setting.within_variance
        ) ** 0.5
        labels_BC = pairs["labels"][ids_BC]
        inputs_BCF = torch.cat([items_BCD, labels_BC[..., None]], dim=-1).float()
        inputs_BCF[:, -1, -1] = -1
        targets_B1 = labels_BC[:, -1:]
        return Batch(inputs_BCF, targets_B1, F.one_hot(targets_B1, 2).double(), query_ids_B)

    def _draw_pairs(
        self,
        tasks: TaskSet,
        position_B1: Tensor,
        generator: torch.Generator,
        task_ids: Tensor | None,
        *,
        query_in_context: bool,
    ) -> Tensor:
        """(B, C) rows of the task set, the query's last."""
        batch_size, num_items = len(position_B1), self.setting.context_length - 1
        if not query_in_context:
            count = len(tasks.log_prior)
            if count < 2:
                raise ValueError(
                    f"a query whose pair is not in the context needs 2 pairs or more, not {count}: "
                    "raise setting.num_tasks"
                )
            query_B1 = chosen_ids(tasks, batch_size, generator, task_ids)[:, None]
            others_BM = tasks.log_prior.exp().repeat(batch_size, 1).scatter_(1, query_B1, 0)
            items_BC = torch.multinomial(
                others_BM, num_items, replacement=True, generator=generator
            )
            return torch.cat([items_BC, query_B1], dim=1)
        items_BC = draw_ids(tasks.log_prior, batch_size * num_items, generator).view(batch_size, -1)
        if task_ids is not None:
            chosen_B1 = chosen_ids(tasks, batch_size, generator, task_ids)[:, None]
            items_BC.scatter_(1, position_B1, chosen_B1)
        return torch.cat([items_BC, items_BC.gather(1, position_B1)], dim=1)

    def predictions(self, output: Tensor) -> Tensor:
        return output[:, -1:].float().log_softmax(-1)

    def training_loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output[:, -1], batch.targets[:, 0])

    def loss(self, predictions: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of the query's label, nats."""
        return -(batch.truth * predictions).sum(-1)

    def divergence(self, one: Tensor, other: Tensor) -> Tensor:
        return symmetrised_kl(one, other)

    def predict(self, which: Predictor, batch: Batch, tasks: TaskSet | None) -> Tensor:
        """generalizing: the query copies item j with probability in proportion to the density of
        N(x_j / (1+v), (1 - 1/(1+v)^2) I/D) at it, the posterior when all items are of different new
        pairs. memorizing: the query is of pair m in proportion to the prior and the density of
        N(mu_m / sqrt(1+v), v/(1+v) I/D), from the query alone. constant: 1/2."""
        inputs = batch.inputs.double()
        query_BD = inputs[:, -1, :-1]
        spread = self.setting.within_variance
        if which == "constant":
            one_B = torch.full_like(query_BD[:, 0], 0.5)
        elif which == "generalizing":
            items_BCD, labels_BC = inputs[:, :-1, :-1], inputs[:, :-1, -1]
            distances_BC = (query_BD[:, None] - items_BCD / (1 + spread)).square().sum(-1)
            precision = self.num_dims * (1 + spread) ** 2 / (spread * (2 + spread))
            copied_BC = (-precision / 2 * distances_BC).softmax(-1)
            one_B = (copied_BC * labels_BC).sum(-1)
        else:
            centers_MD, log_prior_M = needed_tasks(which, tasks, "centers")
            assert tasks is not None
            # |sqrt(1+v) x - mu|^2 without |x|^2, which is the same for all pairs
            distances_BM = (
                centers_MD.square().sum(-1) - 2 * (1 + spread) ** 0.5 * query_BD @ centers_MD.T
            )
            log_weights_BM = log_prior_M - self.num_dims / (2 * spread) * distances_BM
            one_B = log_weights_BM.softmax(-1) @ tasks.values["labels"].double()
        one_B = one_B.clamp(SMALLEST, 1 - SMALLEST)
        return torch.stack([1 - one_B, one_B], dim=-1).log()[:, None]
