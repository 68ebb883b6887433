"""Self-edits: the training set and the settings that a model picks to adapt itself to a task.

The JSON layout is the one published with SEAL (arXiv 2506.10943); unlike there, a self-edit that is
not valid is refused with a reason instead of being trained for zero epochs.
"""

import json
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from training.domains.arc.grids import Family
from training.domains.arc.tasks import Task
from training.domains.arc.text import GridFormat, format_grid
from training.domains.base import Message
from utils.json_files import unique_keys

Strategy = Literal["train_using_output_tokens", "train_using_all_tokens"]

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
FAMILY_OF_FLAG: dict[str, Family] = {
    "use_basic_augmentations": "basic",
    "use_size_augmentations": "size",
    "use_chain_augmentations": "chain",
    "use_repeat_augmentations": "repeat",
}
_TRAINING_KEYS = ("strategy", "learning_rate", "num_train_epochs")


class SelfEditError(ValueError):
    """The text is no self-edit within the bounds; the message says why."""


@dataclass(frozen=True)
class Bounds:
    """What a self-edit may ask for. `max_steps` is the published cap on optimizer steps."""

    min_learning_rate: float = 1e-6
    max_learning_rate: float = 1e-2
    min_epochs: int = 1
    max_epochs: int = 20
    max_steps: int = 375

    def __post_init__(self) -> None:
        rates = (self.min_learning_rate, self.max_learning_rate)
        if not 0 < rates[0] <= rates[1] < math.inf:
            raise ValueError(
                f"min_learning_rate={rates[0]:g}, max_learning_rate={rates[1]:g}: expected 0 < "
                "min_learning_rate <= max_learning_rate"
            )
        if not 1 <= self.min_epochs <= self.max_epochs:
            raise ValueError(
                f"min_epochs={self.min_epochs}, max_epochs={self.max_epochs}: expected 1 <= "
                "min_epochs <= max_epochs"
            )
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps}: expected at least 1")


@dataclass(frozen=True)
class SelfEdit:
    use_basic_augmentations: bool
    use_size_augmentations: bool
    use_chain_augmentations: bool
    use_repeat_augmentations: bool
    strategy: Strategy
    learning_rate: float
    num_train_epochs: int

    @property
    def families(self) -> tuple[Family, ...]:
        """The augmentation families that are on."""
        return tuple(family for flag, family in FAMILY_OF_FLAG.items() if getattr(self, flag))

    def to_json(self) -> dict[str, dict[str, Any]]:
        """The published nested layout."""
        return {
            "data_generation": {flag: getattr(self, flag) for flag in FAMILY_OF_FLAG},
            "training": {key: getattr(self, key) for key in _TRAINING_KEYS},
        }


# The settings the SEAL paper tuned by hand; its baseline is the model without any training.
ORACLE = SelfEdit(
    use_basic_augmentations=True,
    use_size_augmentations=True,
    use_chain_augmentations=True,
    use_repeat_augmentations=True,
    strategy="train_using_output_tokens",
    learning_rate=1e-4,
    num_train_epochs=2,
)


def json_schema(bounds: Bounds) -> dict[str, Any]:
    """A schema of all self-edits within `bounds`, for constrained sampling.

    llguidance writes bounded numbers in decimals, so `multipleOf` ends their digits at a tenth of
    the lowest rate's power of ten. `parse_self_edit` asks for the bounds only.
    """
    digits = 1 - math.floor(math.log10(bounds.min_learning_rate))
    return _object(
        data_generation=_object(**{flag: {"type": "boolean"} for flag in FAMILY_OF_FLAG}),
        training=_object(
            strategy={"type": "string", "enum": list(STRATEGIES)},
            learning_rate={
                "type": "number",
                "minimum": bounds.min_learning_rate,
                "maximum": bounds.max_learning_rate,
                "multipleOf": float(f"1e-{digits}"),
            },
            num_train_epochs={
                "type": "integer",
                "minimum": bounds.min_epochs,
                "maximum": bounds.max_epochs,
            },
        ),
    )


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _section(data: Any, name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise SelfEditError(f"{name}: expected an object with {list(keys)}, got {_short(data)}")
    missing = [key for key in keys if key not in data]
    extra = [key for key in data if key not in keys]
    if missing or extra:
        raise SelfEditError(f"{name}: missing keys {missing}, unknown keys {_short(extra)}")
    return data


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # Python prints neither integers of thousands of digits nor very deep nests
        return "a value too large to print"
    return text if len(text) <= 60 else text[:57] + "..."


def parse_self_edit(text: str, bounds: Bounds) -> SelfEdit:
    """The self-edit written as JSON in `text`; SelfEditError names the field, got and allowed."""
    try:
        data = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise SelfEditError(f"not JSON ({error}): {_short(text)}") from None

    data = _section(data, "self-edit", ("data_generation", "training"))
    flags = _section(data["data_generation"], "data_generation", tuple(FAMILY_OF_FLAG))
    training = _section(data["training"], "training", _TRAINING_KEYS)
    for flag, value in flags.items():
        if not isinstance(value, bool):
            raise SelfEditError(f"{flag}: got {_short(value)}, allowed are true and false")
    strategy = training["strategy"]
    if strategy not in STRATEGIES:
        raise SelfEditError(f"strategy: got {_short(strategy)}, allowed are {list(STRATEGIES)}")
    rate = training["learning_rate"]
    low, high = bounds.min_learning_rate, bounds.max_learning_rate
    # bool is an int in Python, and NaN fails the comparison as it should
    is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not is_number or not low <= rate <= high:
        raise SelfEditError(
            f"learning_rate: got {_short(rate)}, allowed are numbers {low:g}..{high:g}"
        )
    epochs = training["num_train_epochs"]
    is_integer = isinstance(epochs, int) and not isinstance(epochs, bool)
    if not is_integer or not bounds.min_epochs <= epochs <= bounds.max_epochs:
        raise SelfEditError(
            f"num_train_epochs: got {_short(epochs)}, allowed are integers "
            f"{bounds.min_epochs}..{bounds.max_epochs}"
        )
    return SelfEdit(
        **{flag: flags[flag] for flag in FAMILY_OF_FLAG},
        strategy=strategy,
        learning_rate=float(rate),
        num_train_epochs=epochs,
    )


def training_steps(num_examples: int, epochs: int, batch_size: int = 2) -> int:
    """Optimizer steps, the last batch of an epoch being smaller where it does not divide."""
    return math.ceil(num_examples / batch_size) * epochs


def check_steps(num_examples: int, epochs: int, bounds: Bounds, batch_size: int = 2) -> None:
    """SelfEditError if `epochs * num_examples // batch_size` is above the published step cap."""
    steps = epochs * num_examples // batch_size
    if steps > bounds.max_steps:
        raise SelfEditError(
            f"num_train_epochs: {epochs} epochs of {num_examples} examples are {steps} steps at "
            f"batch size {batch_size}, allowed are {bounds.max_steps}"
        )


# The flags show both values: with "..." a small model sets every one of them to true.
_SKELETON = (
    json.dumps(
        {
            "data_generation": dict.fromkeys(FAMILY_OF_FLAG, "false or true"),
            "training": dict.fromkeys(_TRAINING_KEYS, "..."),
        },
        indent=2,
    )
    .replace('"..."', "...")
    .replace('"false or true"', "false or true")
)


def self_edit_messages(
    task: Task, grid_format: GridFormat, bounds: Bounds | None = None
) -> list[Message]:
    """The request for a self-edit: the task's demonstrations, the choices, and the JSON skeleton.

    States the ranges where `bounds` are given.
    """
    pairs = [
        f"Input:\n{format_grid(pair.input, grid_format)}\n"
        f"Output:\n{format_grid(pair.output, grid_format)}\n"
        for pair in task.train
        if pair.output is not None
    ]
    rates = epochs = ""
    if bounds is not None:
        rates = f" from {bounds.min_learning_rate:g} to {bounds.max_learning_rate:g}"
        epochs = f" from {bounds.min_epochs} to {bounds.max_epochs}"
    request = f"""A model will be fine-tuned on variations of these pairs, then asked to solve a \
new input of the same puzzle. Decide how to train it.

Variations to add to the pairs, each true or false:
- use_basic_augmentations: rotate, flip, mirror, shift, transpose
- use_size_augmentations: double the height, the width or both
- use_chain_augmentations: rotate, flip or transpose, then double the size
- use_repeat_augmentations: repeat the grid downwards, sideways or both ways

Training:
- strategy: train_using_output_tokens (learn the answers only) or train_using_all_tokens (learn \
the whole text)
- learning_rate: a number{rates}
- num_train_epochs: an integer{epochs}

Reply with this JSON object and nothing else, every choice made and every ... replaced:
{_SKELETON}"""
    return [
        {"role": "system", "content": "You choose training settings and reply in JSON."},
        {"role": "user", "content": "\n".join(pairs) + "\n" + request},
    ]
