"""The coordinate check of a parametrisation: how large activations are, and how far they move.

In mup neither depends on the width after any number of updates; in the standard parametrisation
the change grows with the width (Yang et al. 2022, arXiv 2203.03466, appendix D.1).
"""

from collections.abc import Sequence
from typing import NamedTuple

import chz
import torch

from training.icl.base import Family, TaskSet
from training.icl.config import MLP, Training
from training.icl.tasks import make_generator
from training.icl.train import Trainer


class Coordinates(NamedTuple):
    """Root mean squares over sequences, positions and units, for each layer (before the first
    non-linearity, after each of the hidden layers, output): at the start, and of the change."""

    at_init: list[float]
    change: list[float]


def coordinate_check(
    config: MLP,
    widths: Sequence[int],
    family: Family,
    tasks: TaskSet | None,
    *,
    learning_rate: float,
    num_steps: int,
    seed: int,
) -> dict[int, Coordinates]:
    """By width, before and after `num_steps` updates with AdamW, on the same 64 sequences."""
    probe = family.sample(tasks, 64, make_generator("evaluation", "coordinates", seed)).inputs
    training = Training(num_steps=num_steps, learning_rate=learning_rate, grad_clip_norm=0.0)
    checked = {}
    for width in widths:
        trainer = Trainer(
            chz.replace(config, hidden_size=width), training, family, tasks, seed=seed
        )
        before = _activations(trainer, probe)
        for _ in range(num_steps):
            trainer.train_step()
        after = _activations(trainer, probe)
        checked[width] = Coordinates(
            [_rms(layer) for layer in before],
            [_rms(new - old) for new, old in zip(after, before, strict=True)],
        )
    return checked


@torch.no_grad()
def _activations(trainer: Trainer, inputs: torch.Tensor) -> list[torch.Tensor]:
    output, states = trainer.model(inputs, output_hidden_states=True)
    return [*states, output]


def _rms(values: torch.Tensor) -> float:
    return values.square().mean().sqrt().item()
