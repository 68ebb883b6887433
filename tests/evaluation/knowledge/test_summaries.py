"""evaluation/knowledge/summaries.py: SEAL's summaries of continual self-edits and their average."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from places import SHARED_DATA

from evaluation.knowledge.matrix import Estimate, cell_estimates, estimates, measures
from evaluation.knowledge.summaries import (
    Summary,
    aggregate,
    read_summaries,
    read_summary,
    summarise,
    write_summary,
)
from utils.config.errors import ConfigError

RELEASED = SHARED_DATA / "seal_results" / "continual_self_edits"

TRIANGLES = [
    [[0.1, 0.2], [0.9, None], [0.5, 0.8]],
    [[0.3, 0.2], [0.7, None], [0.4, 0.6]],
    [[0.2, 0.5], [0.8, None], [0.1, 0.9]],
]


def summary_of(matrices: Any, **more: Any) -> Summary:
    return summarise(matrices, dataset="d", base_model="m", **more)


def test_there_and_back(tmp_path: Path) -> None:
    summary = summary_of(TRIANGLES)
    path = tmp_path / "summary.json"
    write_summary(path, summary)
    plain = json.loads(path.read_text())
    # SEAL's own fields, and no other where its triangle says which cells there are
    assert list(plain) == [
        *("mean_over_sequences", "std_over_sequences"),
        *("n_sequences", "n_datapoints", "dataset", "base_model"),
    ]
    assert plain["mean_over_sequences"][1] == [pytest.approx(0.8), 0.0]
    assert plain["std_over_sequences"][1] == [pytest.approx(0.1), 0.0]
    assert read_summary(path) == summary
    assert summary.matrix()[1] == [pytest.approx(0.8), None]
    assert summary.estimates() == [
        [None if cell is None else pytest.approx(cell) for cell in row]
        for row in cell_estimates(TRIANGLES)
    ]


def test_cells_beyond_seals_triangle(tmp_path: Path) -> None:
    full = [[[0.1, 0.2], [0.9, 0.0], [0.5, None]], [[0.3, 0.2], [0.7, 0.0], [0.4, 0.6]]]
    summary = summary_of(full, method="replay")
    path = tmp_path / "summary.json"
    write_summary(path, summary)
    assert json.loads(path.read_text())["n_scored"] == [[2, 2], [2, 2], [2, 1]]
    again = read_summary(path)
    assert again == summary
    assert again.method == "replay"
    assert again.estimate(1, 1) == Estimate(0.0, 0.0, 2)
    assert again.estimate(2, 1) == Estimate(0.6, None, 1)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"n_sequences": "3"}, "n_sequences: Input should be a valid integer"),
        ({"n_sequences": 0}, "n_sequences: 0; at least 1 is needed"),
        ({"n_datapoints": 3}, "mean_over_sequences: 3 rows of [2]; n_datapoints=3 needs 4 rows"),
        ({"std_over_sequences": [[0.1, 0.1]]}, "std_over_sequences: 1 rows of [2]"),
        ({"mean_over_sequences": [[math.nan, 0], [0, 0], [0, 0]]}, "mean_over_sequences: numbers"),
        ({"dataset": None}, "dataset: Input should be a valid string"),
    ],
)
def test_what_is_no_summary(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({**summary_of(TRIANGLES).to_plain(), **change}))
    with pytest.raises(ConfigError) as caught:
        read_summary(path)
    assert caught.value.problems[0].startswith(f"{path}, {problem}")


def test_pooled_is_as_if_all_were_one_run() -> None:
    runs = {"a": summary_of(TRIANGLES[:2]), "b": summary_of(TRIANGLES[2:])}
    pooled, together = aggregate(runs), summary_of(TRIANGLES)
    assert (pooled.n_sequences, pooled.n_scored) == (3, together.n_scored)
    for mine, theirs in zip(pooled.estimates(), together.estimates(), strict=True):
        assert mine == [None if cell is None else pytest.approx(cell) for cell in theirs]
    averaged = aggregate(runs, "averaged").std_over_sequences[0][0]
    assert averaged == pytest.approx((statistics.stdev([0.1, 0.3]) + 0) / 2)


def test_only_runs_of_one_setting_are_averaged() -> None:
    first = summary_of(TRIANGLES)
    with pytest.raises(ConfigError, match=r"b: base_model='n', but 'm' in a; only runs"):
        aggregate({"a": first, "b": replace(first, base_model="n")})
    with pytest.raises(ConfigError, match="method='gate', but None"):
        aggregate({"a": first, "b": replace(first, method="gate")})
    with pytest.raises(ConfigError, match="no summary"):
        aggregate({})


def test_a_summary_is_counted_once(tmp_path: Path) -> None:
    path, link = tmp_path / "summary.merge.json", tmp_path / "again"
    path.write_text(json.dumps(summary_of(TRIANGLES).to_plain()))
    link.symlink_to(tmp_path)
    for again in (path, tmp_path, link):
        with pytest.raises(ConfigError, match=r"was given before as .*name it once"):
            read_summaries([path, again])
    assert list(read_summaries([path])) == ["overall_results.json"]


@pytest.mark.skipif(not RELEASED.is_dir(), reason="needs SEAL's released results")
def test_seals_released_averages() -> None:
    runs = {str(path): read_summary(path) for path in sorted(RELEASED.glob("run*/*.json"))}
    assert len(runs) == 8
    released = json.loads((RELEASED / "overall_results.json").read_text())
    assert aggregate(runs, "averaged").to_plain(digits=4) == released
    pooled = aggregate(runs).to_plain(digits=4)
    assert pooled["mean_over_sequences"] == released["mean_over_sequences"]
    row_0 = [0.2511, 0.2668, 0.2252, 0.2505, 0.2485, 0.2957, 0.2541, 0.2382]
    assert pooled["std_over_sequences"][0] == row_0
    gaps = [
        abs(mine - theirs)
        for rows in zip(pooled["std_over_sequences"], released["std_over_sequences"], strict=True)
        for mine, theirs in zip(*rows, strict=True)
    ]
    assert max(gaps) == pytest.approx(0.0228, abs=1e-4)


@pytest.mark.skipif(not RELEASED.is_dir(), reason="needs SEAL's released results")
def test_what_seals_sequences_learn_and_lose() -> None:
    """A self-edit adds 11 points to what is known of its passage; then 19 are lost, and after
    eight edits less is known than before the first. Errors over the eight runs."""
    runs = [read_summary(path) for path in sorted(RELEASED.glob("run*/*.json"))]
    found = estimates([measures(run.matrix()) for run in runs])
    expected = {
        "before": (0.3075, 0.0139),
        "final": (0.2474, 0.0131),
        "net": (-0.0601, 0.0154),
        "acquisition": (0.1071, 0.0191),
        "backward_transfer": (-0.1910, 0.0141),
        "forgetting": (0.2069, 0.0122),
        "forward_transfer": None,
    }
    assert list(found) == list(expected)
    for name, numbers in expected.items():
        wanted = None if numbers is None else pytest.approx((*numbers, 8), abs=1e-4)
        assert found[name] == wanted
