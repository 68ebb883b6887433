"""What a value of the API may be: checks that give the value back in its plain Python type.

A check raises ValueError with what is needed. Numbers of numpy are fine; a bool is no number, and a
float is no whole number even where it happens to be one.
"""

import math
import sys
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

Check = Callable[[Any], Any]


def whole(least: int | None = None) -> Check:
    def check(value: Any) -> int:
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not is_whole or (least is not None and value < least):
            raise ValueError(f"a whole number{'' if least is None else f' from {least}'} is needed")
        return int(value)

    return check


def real(
    needed: str = "a finite number", holds: Callable[[float], bool] = lambda _number: True
) -> Check:
    """`holds`: what else has to be true of it, as `needed` says."""

    def check(value: Any) -> float:
        number = math.nan
        if isinstance(value, Integral) and not isinstance(value, bool):
            # 1 stays 1, as it was written
            number = int(value)
        elif isinstance(value, Real) and not isinstance(value, bool):
            number = float(value)
        if not -sys.float_info.max <= number <= sys.float_info.max or not holds(number):
            raise ValueError(f"{needed} is needed")
        return number

    return check


def flag(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError("True or False is needed")
    return bool(value)


def one_of(allowed: tuple[str, ...]) -> Check:
    def check(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"allowed are {', '.join(allowed)}")
        return value

    return check


def optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def check_values(owner: str, values: Mapping[str, tuple[Any, Check]]) -> dict[str, Any]:
    """The values as their checks give them, or one ValueError for all that are wrong."""
    settled, problems = {}, []
    for name, (value, check) in values.items():
        try:
            settled[name] = check(value)
        except ValueError as error:
            problems.append(f"{name}={value!r}: {error}")
    if problems:
        raise ValueError(f"{owner}: " + "; ".join(problems))
    return settled


def check_fields(instance: Any, **checks: Check) -> None:
    """check_values of a frozen dataclass's fields, which it then holds."""
    values = {name: (getattr(instance, name), check) for name, check in checks.items()}
    for name, value in check_values(type(instance).__name__, values).items():
        object.__setattr__(instance, name, value)


def tokens(value: Any) -> list[int]:
    """Token ids as a plain list, from a sequence or a flat array or tensor of whole numbers."""
    if isinstance(value, str | bytes):
        raise ValueError("token ids are needed, not text")
    # arrays and tensors are converted at once; their elements are whole where their dtype is
    listed = value.tolist() if hasattr(value, "tolist") else value
    try:
        listed = list(listed)
    except TypeError as error:
        raise ValueError("a sequence of token ids is needed") from error
    # several times as fast as a loop over the tokens
    if set(map(type, listed)) <= {int}:
        return listed
    check = whole()
    for at, token in enumerate(listed):
        try:
            listed[at] = check(token)
        except ValueError as error:
            raise ValueError(f"token {at} is {token!r}: {error}") from error
    return listed


def stop(value: Any) -> "str | list[str | int] | tuple[str | int, ...] | None":
    """Text, or a sequence of texts and token ids."""
    if value is None or isinstance(value, str):
        _stop_text(value)
        return value
    if isinstance(value, bytes | bytearray):
        raise ValueError("text is needed, not bytes; decode it first")
    listed = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(listed, list | tuple | set | frozenset):
        raise ValueError("a text or a list of texts and token ids is needed")
    token = whole(0)
    settled: list[str | int] = []
    for item in listed:
        if isinstance(item, str):
            _stop_text(item)
            settled.append(item)
            continue
        try:
            settled.append(token(item))
        except ValueError as error:
            raise ValueError(f"{item!r} is neither a text nor a token id") from error
    return tuple(settled) if isinstance(value, tuple) else settled


def _stop_text(text: str | None) -> None:
    if text == "":
        raise ValueError("an empty string stops nowhere; use stop=[] for no stop")
    if text is not None and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("half a surrogate pair is no text that a model can write")


def checkpoint_name(name: Any) -> str:
    if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
        raise ValueError(f"checkpoint name {name!r}: a plain name without '/' is needed")
    return name


def sample_arguments(
    num_samples: Any,
    include_prompt_logprobs: Any,
    topk_prompt_logprobs: Any,
    topk_sample_logprobs: Any,
) -> dict[str, Any]:
    """Of SamplingClient.sample(), besides the prompt and the SamplingParams."""
    return check_values(
        "sample",
        {
            "num_samples": (num_samples, whole(1)),
            "include_prompt_logprobs": (include_prompt_logprobs, flag),
            "topk_prompt_logprobs": (topk_prompt_logprobs, whole(0)),
            "topk_sample_logprobs": (topk_sample_logprobs, whole(0)),
        },
    )
