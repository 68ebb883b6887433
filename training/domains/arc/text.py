"""Grids and tasks as text, in the shape of SEAL's prompts: `input -> output#` per demonstration."""

import re
from typing import Literal, NamedTuple, get_args

from training.domains.arc.grids import MAX_SIDE, NUM_COLORS, Grid, to_grid
from training.domains.arc.tasks import Task
from training.domains.base import Message

GridFormat = Literal["numpy", "digits", "words"]

END_MARK = "#"
COLOR_NAMES = (
    "Black",
    "Blue",
    "Red",
    "Green",
    "Yellow",
    "Gray",
    "Pink",
    "Orange",
    "Purple",
    "Brown",
)
INSTRUCTION = "Find the rule that turns each input grid into its output grid. Apply it."
_SEPARATORS: dict[GridFormat, str] = {"numpy": " -> ", "digits": "\n->\n", "words": "\n->\n"}
_NUMPY_GRID = re.compile(r"\[\s*(\[[\d\s,]*\][\s,]*)+\]")
_FENCE = re.compile(r"```(?:[a-z]*\n)?(.*?)(?:```|$)", re.DOTALL)


class GridParseError(ValueError):
    """The text is no grid; the message says why."""


class Piece(NamedTuple):
    """A stretch of prompt text. `is_output` marks a demonstration's output with its end mark."""

    text: str
    is_output: bool


def _check_format(grid_format: str) -> None:
    if grid_format not in _SEPARATORS:
        allowed = ", ".join(get_args(GridFormat))
        raise ValueError(f"grid_format={grid_format!r}: allowed are {allowed}")


def format_grid(grid: Grid, grid_format: GridFormat) -> str:
    """`[[0 1]\\n [2 3]]` ("numpy"), rows of digits, or rows of colour words."""
    _check_format(grid_format)
    rows = grid.tolist()
    if grid_format == "numpy":
        return "[" + "\n ".join(f"[{' '.join(map(str, row))}]" for row in rows) + "]"
    if grid_format == "digits":
        return "\n".join("".join(map(str, row)) for row in rows)
    return "\n".join(" ".join(COLOR_NAMES[cell] for cell in row) for row in rows)


def answer_text(grid: Grid, grid_format: GridFormat) -> str:
    """What the model is to answer: the grid and the end mark."""
    return format_grid(grid, grid_format) + END_MARK


def _cells(row: str, grid_format: GridFormat) -> list[int]:
    if grid_format == "words":
        colors = {name.lower(): color for color, name in enumerate(COLOR_NAMES)}
        words = row.lower().split()
        unknown = sorted(set(words) - set(colors))
        if unknown:
            raise GridParseError(f"unknown colours {unknown}, expected {', '.join(COLOR_NAMES)}")
        return [colors[word] for word in words]
    # a numpy cell may have two digits, which to_grid refuses; a digits row is one cell per digit
    cells = row.replace(",", " ").split() if grid_format == "numpy" else list("".join(row.split()))
    if not all(re.fullmatch("[0-9]{1,3}", cell) for cell in cells):
        raise GridParseError(f"row {row!r:.80} has cells other than 0..{NUM_COLORS - 1}")
    return [int(cell) for cell in cells]


def parse_grid(text: str, grid_format: GridFormat) -> Grid:
    """The grid of an answer. GridParseError says why there is none.

    Ignored: all that follows the end mark, a code fence around the grid, additional spaces.
    """
    _check_format(grid_format)
    body = text.split(END_MARK)[0]
    fenced = _FENCE.search(body)
    body = (fenced.group(1) if fenced else body).strip()
    if not body:
        raise GridParseError("the answer is empty")
    if grid_format == "numpy":
        if not _NUMPY_GRID.fullmatch(body):
            raise GridParseError(f"{body!r:.80} is not of the form [[0 1]\\n [2 3]]")
        rows = re.findall(r"\[([\d\s,]*)\]", body)
    else:
        rows = [row for row in body.splitlines() if row.strip()]
    try:
        grid = to_grid([_cells(row, grid_format) for row in rows])
    except GridParseError:
        raise
    except ValueError as error:
        raise GridParseError(str(error)) from None
    if max(grid.shape) > MAX_SIDE:
        raise GridParseError(f"{grid.shape[0]}x{grid.shape[1]} is above {MAX_SIDE}x{MAX_SIDE}")
    return grid


def demonstration_pieces(task: Task, grid_format: GridFormat) -> list[Piece]:
    """The instruction and the demonstrations; joined, they are what `task_messages` puts first.

    The i-th piece with `is_output` is the output of the i-th demonstration.
    """
    _check_format(grid_format)
    separator = _SEPARATORS[grid_format]
    pieces = []
    lead = INSTRUCTION + "\n"
    for pair in task.train:
        if pair.output is None:
            raise ValueError(f"{task.id}: a demonstration has no output")
        pieces.append(Piece(lead + format_grid(pair.input, grid_format) + separator, False))
        pieces.append(Piece(answer_text(pair.output, grid_format), True))
        lead = "\n"
    pieces.append(Piece(lead, False))
    return pieces


def task_messages(
    task: Task, grid_format: GridFormat, *, test_index: int = 0, use_system: bool = True
) -> list[Message]:
    """The prompt for one test: demonstrations as system message, the test input as user message.

    One user message holds both without `use_system`, for chat templates that know no system role.
    """
    demonstrations = "".join(piece.text for piece in demonstration_pieces(task, grid_format))
    test_input = format_grid(task.test[test_index].input, grid_format)
    query = test_input + _SEPARATORS[grid_format].rstrip()
    if not use_system:
        return [{"role": "user", "content": demonstrations + query}]
    return [{"role": "system", "content": demonstrations}, {"role": "user", "content": query}]
