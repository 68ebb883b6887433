"""Summaries of continual self-edits in SEAL's layout, and what several of them say together.

{"mean_over_sequences", "std_over_sequences": K+1 rows of K, "n_sequences", "n_datapoints": K,
"dataset", "base_model"}. SEAL fills rows from 1 on below the diagonal alone and has 0 elsewhere;
"n_scored" (ours) tells for every cell how many sequences it is of, so that a 0 is one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from evaluation.knowledge.matrix import Cell, Estimate, Matrix, cell_estimates
from training.domains.knowledge.seal_files import validated, write_json
from utils.config.errors import problems_of, raise_problems
from utils.json_files import read_json_object

# pooled: that of all sequences as one sample. averaged: the plain mean of the runs' deviations,
# which leaves out how far their means lie apart; SEAL's released averages hold it
Deviation = Literal["pooled", "averaged"]

_MUST_AGREE = ("n_datapoints", "dataset", "base_model", "method")


@dataclass(frozen=True)
class Summary:
    """Axes R = K+1 rows, K passages. A cell of no sequence (`n_scored` 0) holds 0.0, the deviation
    of one sequence is 0.0. `method` is None in SEAL's files."""

    mean_over_sequences: list[list[float]]
    std_over_sequences: list[list[float]]
    n_sequences: int
    n_datapoints: int
    dataset: str
    base_model: str
    n_scored: list[list[int]] = field(default_factory=list)
    method: str | None = None

    def estimate(self, r: int, k: int) -> Estimate | None:
        """Of a cell, over sequences."""
        n = self.n_scored[r][k]
        if n == 0:
            return None
        error = self.std_over_sequences[r][k] / math.sqrt(n) if n > 1 else None
        return Estimate(self.mean_over_sequences[r][k], error, n)

    def estimates(self) -> list[list[Estimate | None]]:
        return [
            [self.estimate(r, k) for k in range(self.n_datapoints)]
            for r in range(self.n_datapoints + 1)
        ]

    def matrix(self) -> list[list[Cell]]:
        """The means."""
        return [[None if cell is None else cell.mean for cell in row] for row in self.estimates()]

    def to_plain(self, digits: int | None = None) -> dict[str, Any]:
        """As in the file; means and deviations rounded to `digits` places."""
        plain: dict[str, Any] = {
            "mean_over_sequences": _rounded(self.mean_over_sequences, digits),
            "std_over_sequences": _rounded(self.std_over_sequences, digits),
            "n_sequences": self.n_sequences,
            "n_datapoints": self.n_datapoints,
            "dataset": self.dataset,
            "base_model": self.base_model,
        }
        if self.n_scored != _scored_by_seal(self.n_sequences, self.n_datapoints):
            plain["n_scored"] = self.n_scored
        return plain if self.method is None else {**plain, "method": self.method}


_SUMMARY = TypeAdapter(Summary)


def summarise(
    matrices_S: Sequence[Matrix], *, dataset: str, base_model: str, method: str | None = None
) -> Summary:
    """Raises ValueError for matrices of different sizes."""
    cells = cell_estimates(matrices_S)
    return Summary(
        mean_over_sequences=[[0.0 if c is None else c.mean for c in row] for row in cells],
        std_over_sequences=[[_deviation(c) for c in row] for row in cells],
        n_sequences=len(matrices_S),
        n_datapoints=len(cells[0]),
        dataset=dataset,
        base_model=base_model,
        n_scored=[[0 if c is None else c.n for c in row] for row in cells],
        method=method,
    )


def write_summary(path: Path, summary: Summary, digits: int | None = None) -> None:
    write_json(path, summary.to_plain(digits))


def read_summary(path: Path) -> Summary:
    """Raises ConfigError with what is not of the layout."""
    record = read_json_object(path)
    known = Summary.__dataclass_fields__
    record = {key: record[key] for key in record if key in known}
    if "n_scored" not in record:
        # checked first, for a file may say anything
        plain = validated(_SUMMARY, record, str(path))
        record["n_scored"] = _scored_by_seal(plain.n_sequences, plain.n_datapoints)
    summary = validated(_SUMMARY, record, str(path))
    problems = []
    for name in ("n_sequences", "n_datapoints"):
        if record[name] < 1:
            problems.append(f"{path}, {name}: {record[name]}; at least 1 is needed")
    shape = (summary.n_datapoints + 1, summary.n_datapoints)
    for name in ("mean_over_sequences", "std_over_sequences", "n_scored"):
        rows = record[name]
        if len(rows) != shape[0] or any(len(row) != shape[1] for row in rows):
            problems.append(
                f"{path}, {name}: {len(rows)} rows of {sorted({len(row) for row in rows})}; "
                f"n_datapoints={shape[1]} needs {shape[0]} rows of {shape[1]}"
            )
        elif not all(math.isfinite(cell) and cell >= 0 for row in rows for cell in row):
            problems.append(f"{path}, {name}: numbers of 0 or more are needed throughout")
    raise_problems(problems)
    return summary


def read_summaries(paths: Iterable[Path]) -> dict[str, dict[str, Summary]]:
    """The summaries of each method by their paths; of a run's folder all summary.METHOD.json.
    The methods are named by the files that their average goes to. Raises ConfigError with what is
    wrong with all of them."""
    found: dict[str, dict[str, Summary]] = {}
    given_as: dict[Path, Path] = {}
    problems: list[str] = []
    for path in paths:
        files = sorted(path.glob("summary.*.json")) if path.is_dir() else [path]
        if not path.exists():
            problems.append(f"aggregate: {path}: no such file or folder")
            continue
        if not files:
            problems.append(
                f"aggregate: {path} holds no summary.METHOD.json; is that run finished?"
            )
        for file in files:
            if before := given_as.get(file.resolve()):
                problems.append(f"aggregate: {file} was given before as {before}; name it once")
                continue
            given_as[file.resolve()] = file
            read: list[Summary] = []
            problems += problems_of(lambda file=file, read=read: read.append(read_summary(file)))
            for summary in read:
                label = summary.method
                name = "overall_results.json" if label is None else f"summary.{label}.json"
                found.setdefault(name, {})[str(file)] = summary
    raise_problems(problems, at_most=10)
    return found


def aggregate(summaries: Mapping[str, Summary], deviation: Deviation = "pooled") -> Summary:
    """All sequences of several runs, given by the names of their files, as one.

    Means weigh every sequence alike. The pooled variance of a cell is (sum of (n-1) s^2 + n (m -
    M)^2) / (N - 1), over runs with n sequences, mean m and deviation s; N sequences and mean M in
    all. Raises ConfigError where there is none, or where they differ in passages, data, model or
    method.
    """
    runs = list(summaries.values())
    if not runs:
        raise_problems(["aggregate: no summary; name at least one"])
    first_name = next(iter(summaries))
    raise_problems(
        [
            f"{name}: {key}={getattr(run, key)!r}, but {getattr(runs[0], key)!r} in {first_name}; "
            "only runs of one setting can be averaged"
            for name, run in summaries.items()
            for key in _MUST_AGREE
            if getattr(run, key) != getattr(runs[0], key)
        ],
        at_most=10,
    )
    num_passages = runs[0].n_datapoints
    places = [[(r, k) for k in range(num_passages)] for r in range(num_passages + 1)]
    cells = [[_pooled(runs, r, k, deviation) for r, k in row] for row in places]
    return Summary(
        mean_over_sequences=[[mean for mean, _, _ in row] for row in cells],
        std_over_sequences=[[std for _, std, _ in row] for row in cells],
        n_sequences=sum(run.n_sequences for run in runs),
        n_datapoints=num_passages,
        dataset=runs[0].dataset,
        base_model=runs[0].base_model,
        n_scored=[[n for _, _, n in row] for row in cells],
        method=runs[0].method,
    )


def _pooled(
    runs: Sequence[Summary], r: int, k: int, deviation: Deviation
) -> tuple[float, float, int]:
    """Mean, deviation and number of sequences."""
    parts = [
        (run.mean_over_sequences[r][k], run.std_over_sequences[r][k], run.n_scored[r][k])
        for run in runs
        if run.n_scored[r][k]
    ]
    total = sum(n for _, _, n in parts)
    if total == 0:
        return 0.0, 0.0, 0
    mean = math.fsum(n * m for m, _, n in parts) / total
    if deviation == "averaged":
        return mean, math.fsum(s for _, s, _ in parts) / len(parts), total
    squares = math.fsum((n - 1) * s**2 + n * (m - mean) ** 2 for m, s, n in parts)
    return mean, math.sqrt(squares / (total - 1)) if total > 1 else 0.0, total


def _scored_by_seal(num_sequences: int, num_passages: int) -> list[list[int]]:
    return [
        [num_sequences if r == 0 or k < r else 0 for k in range(num_passages)]
        for r in range(num_passages + 1)
    ]


def _deviation(cell: Estimate | None) -> float:
    return 0.0 if cell is None or cell.error is None else cell.error * math.sqrt(cell.n)


def _rounded(rows: list[list[float]], digits: int | None) -> list[list[float]]:
    return rows if digits is None else [[round(cell, digits) for cell in row] for row in rows]
