"""Tables as plain text, for the end of a script, and as CSV."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

# of a table, where the terminal is not wider, and in a file or a pipe
FIT_WIDTH = 100
# a column of longer texts is not made narrower than this
_NARROWEST_TEXT = 20
_GAP = "  "


def text_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[Any]],
    align: str | None = None,
    *,
    max_width: int = 60,
) -> str:
    """Aligned columns under a rule, without a final newline.

    `align` has a letter per column, l or r; left out, columns of numbers go right. Floats show four
    significant digits, None a dash. Cells wider than `max_width` columns end in an ellipsis. What
    is wider than FIT_WIDTH and the terminal is wrapped at blanks; where that is not enough the
    columns are shown in several tables, one below the other, which all begin with the columns that
    name a row: the first, and texts that follow it.
    """
    numeric = numeric_columns(headers, rows)
    if align is None:
        align = "".join("r" if is_numeric else "l" for is_numeric in numeric)
    if len(align) != len(headers) or set(align) - {"l", "r"}:
        raise ValueError(f"align={align!r}: one l or r for each of {len(headers)} columns")
    columns = [
        _Column([truncate(cell_text(row[i]), max_width) for row in [headers, *rows]], side)
        for i, side in enumerate(align)
    ]
    limit = max(FIT_WIDTH, shutil.get_terminal_size((FIT_WIDTH, 24)).columns)
    return "\n\n".join(_shown(block, limit) for block in _blocks(columns, limit))


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """With a header of all columns; None is an empty cell."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return csv_of_table(names, [[row.get(name) for name in names] for row in rows])


def csv_of_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """`csv_text` where headers may be equal."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([headers, *rows])
    return buffer.getvalue()


def cell_text(value: Any) -> str:
    """How tables show a value: on one line, floats short, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).split())


def truncate(text: str, width: int) -> str:
    """`text` in at most `width` terminal columns, with … where something was cut."""
    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def numeric_columns(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[bool]:
    """Of each column whether it goes right: it has numbers, and nothing else but None. Raises a
    ValueError for a row of another length."""
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"row {list(row)!r} has {len(row)} cells for {len(headers)} columns")
    columns = ([row[i] for row in rows if row[i] is not None] for i in range(len(headers)))
    return [bool(column) and all(map(is_number, column)) for column in columns]


class _Column:
    """Its header and cells, and how narrow and how wide it may be."""

    def __init__(self, cells: list[str], side: str) -> None:
        self.cells = cells
        self.side = side
        self.width = max(map(cell_len, cells))
        longest_word = max((cell_len(word) for cell in cells for word in cell.split()), default=0)
        longest_cell = max(map(cell_len, cells[1:]), default=0)
        self.narrowest = max(longest_word, min(longest_cell, _NARROWEST_TEXT))


def _blocks(columns: list[_Column], limit: int) -> Iterator[list[_Column]]:
    """The columns that are shown side by side."""
    if _total([column.narrowest for column in columns]) <= limit:
        yield columns
        return
    num_names = 1
    for column in columns[1:]:
        widths = [c.width for c in columns[: num_names + 1]]
        if column.side == "r" or _total(widths) > limit // 2:
            break
        num_names += 1
    names, rest = columns[:num_names], columns[num_names:]
    block: list[_Column] = []
    for column in rest:
        if block and _total([c.width for c in [*names, *block, column]]) > limit:
            yield names + block
            block = []
        block.append(column)
    yield names + block


def _shown(columns: list[_Column], limit: int) -> str:
    widths = [column.width for column in columns]
    while _total(widths) > limit:
        spare = [width - c.narrowest for width, c in zip(widths, columns, strict=True)]
        if max(spare) <= 0:
            break
        # the widest of those that can be narrower
        widest = max(range(len(widths)), key=lambda i: (spare[i] > 0, widths[i]))
        widths[widest] -= 1
    lines = []
    for row in range(len(columns[0].cells)):
        cells = [_wrapped(c.cells[row], width) for c, width in zip(columns, widths, strict=True)]
        height = max(map(len, cells))
        for cell in cells:
            blank = [""] * (height - len(cell))
            # a header stands on the rule
            cell[:] = cell + blank if row else blank + cell
        lines += [list(line) for line in zip(*cells, strict=True)]
        if row == 0:
            lines.append(["─" * width for width in widths])
    sides = [column.side for column in columns]
    return "\n".join(
        _GAP.join(
            _pad(cell, width, side) for cell, width, side in zip(line, widths, sides, strict=True)
        ).rstrip()
        for line in lines
    )


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and cell_len(joined) > width:
            lines.append(word)
        else:
            lines[-1] = joined
    return lines


def _pad(text: str, width: int, side: str) -> str:
    return " " * (width - cell_len(text)) + text if side == "r" else set_cell_size(text, width)
