"""An item of a BBH task, from the files or made."""

from typing import NamedTuple


class Item(NamedTuple):
    input: str
    target: str
