"""A protobuf message in parts, before any part is parsed.

The parser makes objects many times the size of the bytes that ask for them. Read one after the
other, elements of a repeated field cost the memory of one, and the first bad one ends the work.
"""

from collections.abc import Iterator

VARINT, EIGHT_BYTES, LENGTH_PREFIXED, FOUR_BYTES = 0, 1, 2, 5
_FIXED_SIZES = {EIGHT_BYTES: 8, FOUR_BYTES: 4}
# 64 bits in groups of 7
_MAX_VARINT_BYTES = 10


def split_off(message: bytes, number: int) -> tuple[bytes, list[tuple[int, int]]]:
    """The message without its field `number`, and from where to where that field's values lie.

    The field is length-prefixed: repeated messages, strings or bytes. Raises ValueError where the
    bytes are no message.
    """
    rest: list[bytes] = []
    values: list[tuple[int, int]] = []
    for found, begin, value, end in _fields(message):
        if found == number:
            values.append((value, end))
        else:
            rest.append(message[begin:end])
    return b"".join(rest), values


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(number if length-prefixed else 0, begin of the field, begin of its value, end) of each."""
    at, size = 0, len(message)
    while at < size:
        begin = at
        tag, at = _varint(message, at)
        kind, number = tag & 7, tag >> 3
        value = at
        if kind == LENGTH_PREFIXED:
            length, value = _varint(message, at)
            at = value + length
        elif kind == VARINT:
            _, at = _varint(message, at)
        elif kind in _FIXED_SIZES:
            at += _FIXED_SIZES[kind]
        else:
            raise ValueError(f"byte {begin} begins a field of kind {kind}")
        if number == 0 or at > size:
            raise ValueError(f"byte {begin} begins no field that ends within the {size} bytes")
        yield (number if kind == LENGTH_PREFIXED else 0), begin, value, at


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where the next thing begins."""
    number = 0
    for place, byte in enumerate(message[at : at + _MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return number, at + place + 1
    raise ValueError(f"byte {at} begins a number that does not end")
