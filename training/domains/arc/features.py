"""What the self-edits of a run are like, feature by feature, and what each feature earned."""

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from statistics import fmean
from typing import Any

from training.domains.arc.grids import FAMILIES
from training.domains.arc.self_edit import Bounds, SelfEdit, SelfEditError, parse_self_edit
from training.domains.base import Samples, Table

# where the bins of learning rates begin, in each power of ten
_EDGES = (1.0, 3.0, 10.0)


def change_table(samples: Samples, bounds: Bounds) -> Table:
    """A row per feature: its share of the held-out self-edits before and after, and the mean reward
    of all self-edits of the run that have it."""
    features = [frozenset(_features(sample, bounds)) for sample in samples]
    order: dict[tuple[int, float, str], None] = {}
    for each in features:
        order |= dict.fromkeys(each)
    sides = {
        side: [
            f for f, s in zip(features, samples, strict=True) if s["when"] == f"held out, {side}"
        ]
        for side in ("before", "after")
    }
    rows = []
    for feature in sorted(order):
        rewards = [s["reward"] for f, s in zip(features, samples, strict=True) if feature in f]
        shares = [f"{sum(feature in f for f in side)}/{len(side)}" for side in sides.values()]
        rows.append([feature[-1], *shares, f"{fmean(rewards):.2f} of {len(rewards)}"])
    return ["self-edits with", "held out, before", "after", "mean reward, all of the run"], rows


def _features(sample: Mapping[str, Any], bounds: Bounds) -> Iterator[tuple[int, float, str]]:
    """Where a feature stands in the table, and its name."""
    try:
        edit = parse_self_edit(sample["answer"], bounds)
    except SelfEditError:
        yield 4, 0, "no valid form"
        return
    yield _rate_bin(edit)
    for place, family in enumerate(FAMILIES):
        if family in edit.families:
            yield 1, place, f"{family} augmentations"
    if not edit.families:
        yield 1, len(FAMILIES), "no augmentation"
    outputs = edit.strategy == "train_using_output_tokens"
    yield 2, outputs, "loss on outputs" if outputs else "loss on all tokens"
    epochs = edit.num_train_epochs
    yield 3, epochs, f"{epochs} epoch{'s' * (epochs != 1)}"


def _rate_bin(edit: SelfEdit) -> tuple[int, float, str]:
    """Half a power of ten: from 1 or 3 times it."""
    power = 10.0 ** math.floor(math.log10(edit.learning_rate) + 1e-9)
    low, high = next(
        (low, high)
        for low, high in pairwise(_EDGES)
        if edit.learning_rate < high * power * (1 - 1e-9)
    )
    return 0, low * power, f"learning rate {low * power:g} to {high * power:g}"
