"""evaluation/knowledge/continual_report.py: tables, heat maps and the page."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from evaluation.knowledge.continual_report import (
    DIFFERENCE_HEADERS,
    HEADERS,
    MethodResult,
    difference_rows,
    heat_maps,
    make_report,
    result_rows,
)
from evaluation.knowledge.matrix import Cell, cell_estimates


def ending(*last_row: float) -> list[list[Cell]]:
    return [[0.1, 0.2], [0.9, None], list(last_row)]


MERGE = MethodResult("merge", [ending(0.2, 0.8), ending(0.4, 0.8)], 1000, 12.5, 3, unscored=1)
REPLAY = MethodResult(
    *("replay", [ending(0.5, 0.8), ending(0.9, 0.8)], 1500, 20.0),
    probes={"perplexity": [[10.0, 11.0, 12.0], [12.0, None, 14.0]]},
)


def test_the_table() -> None:
    merge, replay = result_rows([MERGE, REPLAY])
    assert dict(zip(HEADERS, merge, strict=True)) == {
        "method": "merge",
        "before": "15.0 ± 0.0",
        "at the end": "55.0 ± 5.0",
        "net": "40.0 ± 5.0",
        "acquired": "70.0 ± 0.0",
        "backward transfer": "-60.0 ± 10.0",
        "forgotten": "60.0 ± 10.0",
        "forward transfer": None,
        "trained tokens": 1000,
        "seconds": 12.5,
        "edits failed": 3,
        "unscored": 1,
    }
    assert replay[2] == "75.0 ± 10.0"
    [single] = result_rows([replace(MERGE, matrices_S=MERGE.matrices_S[:1])])
    assert single[2] == "50.0"


def test_differences_to_merge() -> None:
    [row] = difference_rows([MERGE, REPLAY], "merge")
    found = dict(zip(DIFFERENCE_HEADERS, row, strict=True))
    assert found["at the end"] == "replay - merge"
    # 15 and 25 points: 20 ± 5, and t of one degree of freedom
    assert found["difference"] == pytest.approx(20)
    assert found["standard errors"] == pytest.approx(4)
    assert found["95 % interval"] == "-43.5 to 83.5"
    assert found["sequences"] == 2


def test_heat_maps() -> None:
    cells = cell_estimates(MERGE.matrices_S)
    figure = heat_maps(dict.fromkeys(("a", "b", "c", "d"), cells))
    drawn = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in drawn] == ["a", "b", "c", "d"]
    axes: Axes = drawn[0]
    [mesh] = [found for found in axes.collections if isinstance(found, QuadMesh)]
    values = mesh.get_array()
    assert values is not None
    assert values[0].tolist() == pytest.approx([10, 20])
    assert np.ma.getmaskarray(values)[1].tolist() == [False, True]
    # row 0 is on top, and what was not measured has no text
    assert axes.yaxis_inverted()
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts[0.5, 2.5] == "30\n10"
    assert (1.5, 1.5) not in texts
    large = heat_maps({"a": cell_estimates([[[0.5] * 12] * 13])}).axes[0]
    assert not large.texts
    assert len(large.get_xticks()) == 6


def test_the_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    make_report("made", [MERGE, REPLAY], notes=["The gate was <em>."]).write(path)
    page = path.read_text(encoding="utf-8")
    assert "Continual self-edits: made" in page
    assert "2 sequences of 2 passages" in page
    assert "The gate was &lt;em&gt;." in page
    assert "Against merge" in page
    assert "perplexity, mean over sequences." in page
    assert len(re.findall("<svg", page)) == 3
    make_report("made", [REPLAY]).write(path)
    assert "Against" not in path.read_text(encoding="utf-8")
