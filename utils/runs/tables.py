"""Tables as plain text, for the end of a script, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size


def text_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[Any]],
    align: str | None = None,
    *,
    max_width: int = 60,
) -> str:
    """Aligned columns under a rule, without a final newline.

    `align` has a letter per column, l or r; left out, columns of numbers go right. Floats show four
    significant digits, None a dash. Cells wider than `max_width` columns end in an ellipsis.
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"row {list(row)!r} has {len(row)} cells for {len(headers)} columns")
    if align is None:
        align = "".join(_default_align([row[i] for row in rows]) for i in range(len(headers)))
    if len(align) != len(headers) or set(align) - {"l", "r"}:
        raise ValueError(f"align={align!r}: one l or r for each of {len(headers)} columns")
    lines = [[truncate(cell_text(cell), max_width) for cell in row] for row in [headers, *rows]]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(headers))]
    lines.insert(1, ["─" * width for width in widths])
    return "\n".join(
        "  ".join(
            _pad(cell, width, side) for cell, width, side in zip(line, widths, align, strict=True)
        ).rstrip()
        for line in lines
    )


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """With a header of all columns; None is an empty cell."""
    buffer = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
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


def _default_align(column: Sequence[Any]) -> str:
    shown = [value for value in column if value is not None]
    return "r" if shown and all(is_number(value) for value in shown) else "l"


def _pad(text: str, width: int, side: str) -> str:
    return " " * (width - cell_len(text)) + text if side == "r" else set_cell_size(text, width)
