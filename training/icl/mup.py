"""Maximal update parametrisation (mup) of the MLP: one learning rate for all widths.

The rule is that of Yang et al. 2022 (arXiv 2203.03466), table 8, for Adam, with m = width / base:

    parameter            initial std            multiplier   learning rate
    input weights        1/sqrt(fan in)         1            1
    hidden weights       1/sqrt(fan in)         1            1/m
    readout weights      1/sqrt(base)           1/m          1
    biases               0                      1            1

In the standard parametrisation all std are 1/sqrt(fan in) and the rest is 1; at width = base the
two are the same. (The package `mup` trains the same, step by step, as a test shows where it is
installed; it has had no release since March 2022, requires torchvision, and patches modules.)

AdamW shrinks a weight by learning rate x decay at a step; `parameter_groups` raises the decay of
hidden weights by m, so that this shrinking, too, is the same at all widths.
"""

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch

Kind = Literal["input", "hidden", "readout", "bias"]


class Scaling(NamedTuple):
    """How one parameter begins, what its product is multiplied by, and its share of the rate."""

    init_std: float
    multiplier: float = 1.0
    rate_factor: float = 1.0


def scaling(kind: Kind, fan_in: int, *, width: int, base_width: int | None) -> Scaling:
    """The table's row; `fan_in` counts the inputs that are not zero. base_width=None is the
    standard parametrisation. Biases begin at 0, where their fan_in does not matter."""
    if kind == "bias":
        return Scaling(0.0)
    ratio = 1.0 if base_width is None else width / base_width
    std = 1 / math.sqrt(fan_in)
    if kind == "hidden":
        return Scaling(std, rate_factor=1 / ratio)
    if kind == "readout":
        return Scaling(std * math.sqrt(ratio), multiplier=1 / ratio)
    return Scaling(std)


def parameter_groups(
    model: torch.nn.Module, *, learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for AdamW, one per share of the learning rate; `rate_factor` is kept in each, for the
    schedule. A model without `rate_factors` (parameter name -> share) has one group."""
    factors: dict[str, float] = getattr(model, "rate_factors", {})
    by_factor: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        by_factor.setdefault(factors.get(name, 1.0), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * factor,
            "weight_decay": weight_decay / factor,
            "rate_factor": factor,
        }
        for factor, parameters in by_factor.items()
    ]


def set_learning_rate(groups: Iterable[dict[str, Any]], learning_rate: float) -> None:
    """Gives each group of `parameter_groups` its share."""
    for group in groups:
        group["lr"] = learning_rate * group["rate_factor"]
