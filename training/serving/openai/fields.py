"""The fields of a request's body: each is used, known to change nothing, or refused by name."""

import difflib
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from training.checks import Check
from training.serving.errors import ServingError, bad_request

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80
_shown = _repr.repr


class Fields:
    """A body's fields; null is the same as absent.

    `used`: names that the request reads. `ignored`: names that change no answer. `neutral`: fields
    that are not served, with the values at which they ask for nothing.
    """

    def __init__(
        self,
        body: Any,
        *,
        used: frozenset[str],
        ignored: frozenset[str],
        neutral: Mapping[str, tuple[Any, ...]],
    ) -> None:
        if not isinstance(body, dict):
            raise bad_request(f"the body is {_shown(body)}: a JSON object is needed")
        self._body = {name: value for name, value in body.items() if value is not None}
        for name, value in self._body.items():
            if name in used or name in ignored:
                continue
            if name not in neutral:
                raise _unknown(name, used | ignored | neutral.keys())
            if value not in neutral[name]:
                raise unsupported(name, value, neutral[name])

    def has(self, name: str) -> bool:
        return name in self._body

    def read(self, name: str, check: Check, default: Any = None) -> Any:
        """The value as `check` gives it. Raises ServingError where it is refused."""
        if name not in self._body:
            return default
        return checked(name, self._body[name], check)

    def needed(self, name: str, check: Check) -> Any:
        """Raises ServingError where it is absent too."""
        if name not in self._body:
            raise bad_request(
                f"{name} is missing: the request needs it",
                param=name,
                code="missing_required_parameter",
            )
        return self.read(name, check)


def checked(name: str, value: Any, check: Callable[[Any], Any]) -> Any:
    """check(value), whose ValueError becomes one of this field."""
    try:
        return check(value)
    except ValueError as error:
        raise wrong_value(name, value, str(error)) from error


def wrong_value(name: str, value: Any, needed: str) -> ServingError:
    return bad_request(f"{name}={_shown(value)}: {needed}", param=name, code="invalid_value")


def unsupported(name: str, value: Any, neutral: tuple[Any, ...] = ()) -> ServingError:
    allowed = f"; only {' or '.join(map(_shown, neutral))} passes" if neutral else ""
    return bad_request(
        f"{name}={_shown(value)}: this server has no {name}{allowed}. Leave it out",
        param=name,
        code="unsupported_parameter",
    )


def _unknown(name: str, known: frozenset[str]) -> ServingError:
    near = difflib.get_close_matches(name[:80], sorted(known), n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
    return bad_request(
        f"{_shown(name)} is no field of this request; {hint}",
        param=name[:80],
        code="unknown_parameter",
    )
