"""How good predictions are, and which of the exact predictors they resemble."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from training.icl.base import Batch, Family, Predictor, TaskSet

# nats, or squared difference / D. A model trained well still differs from the predictor it follows
# by some thousandths; where the two predictors are closer together than this, that error, not what
# the model follows, decides the ratio.
MIN_DIVERGENCE = 1e-3


class RelativeDistance(NamedTuple):
    """0: like the generalizing predictor, 1: like the memorizing one; NaN where it means nothing,
    with the reason."""

    value: float
    reason: str = ""


def relative_distance(
    to_generalizing: float, to_memorizing: float, between: float
) -> RelativeDistance:
    """(r + 1) / 2 with r = (d(h, G) - d(h, M)) / d(G, M) held within -1 and 1, from the mean
    divergences of a model h and the two predictors (Wurgaft et al., arXiv 2506.17859)."""
    if not between >= MIN_DIVERGENCE:
        return RelativeDistance(
            math.nan,
            f"the two predictors differ by {between:.2g} only (less than {MIN_DIVERGENCE:g})",
        )
    ratio = (to_generalizing - to_memorizing) / between
    if math.isnan(ratio):
        return RelativeDistance(math.nan, "the predictions are not numbers")
    return RelativeDistance((min(1.0, max(-1.0, ratio)) + 1) / 2)


def references(family: Family, batch: Batch, tasks: TaskSet | None) -> dict[Predictor, Tensor]:
    """Exact predictions (B, P, V) by name: memorizing only where there are `tasks`, the mixture's
    (not those the batch was drawn from, where that is another set)."""
    names: list[Predictor] = ["generalizing", "constant"]
    if tasks is not None:
        names.insert(1, "memorizing")
    return {name: family.predict(name, batch, tasks) for name in names}


def compare(
    family: Family,
    predictions: Tensor,
    batch: Batch,
    tasks: TaskSet | None,
    exact: Mapping[Predictor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """(B, P) each: `loss`; `generalizing_loss`, `memorizing_loss`, `constant_loss` of the
    predictors; `divergence_generalizing`, `divergence_memorizing` from the predictions to them and
    `divergence_between` the two. Those that need the memorizing predictor are absent without
    `tasks`. `exact` is `references(...)` of the same batch, where the caller has it."""
    exact = references(family, batch, tasks) if exact is None else exact
    compared = {"loss": family.loss(predictions, batch)}
    for name, expected in exact.items():
        compared[f"{name}_loss"] = family.loss(expected, batch)
        if name != "constant":
            compared[f"divergence_{name}"] = family.divergence(predictions, expected)
    if "memorizing" in exact:
        compared["divergence_between"] = family.divergence(
            exact["generalizing"], exact["memorizing"]
        )
    return compared


def summarise(compared: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over everything of what `compare` returns, and `relative_distance` of those means,
    NaN where it means nothing; absent without the memorizing predictor."""
    means = {name: float(values.mean()) for name, values in compared.items()}
    if "divergence_between" in means:
        means["relative_distance"] = relative_distance(
            means["divergence_generalizing"],
            means["divergence_memorizing"],
            means["divergence_between"],
        ).value
    return means


def symmetrised_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """(KL(p || q) + KL(q || p)) / 2 over the last dimension, nats."""
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1) / 2


def needed_tasks(which: Predictor, tasks: TaskSet | None, name: str) -> tuple[Tensor, Tensor]:
    """The named rows (M, ...) and the log prior (M,) that the memorizing predictor reads."""
    assert which == "memorizing", which
    if tasks is None:
        raise ValueError(
            "the memorizing predictor needs the tasks of a mixture: setting.num_tasks=inf has none"
        )
    return tasks.values[name], tasks.log_prior
