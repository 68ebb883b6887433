"""Plots of in-context-learning experiments: the numbers beside each picture, and what is in it.

uv run pytest tests/evaluation/icl/test_icl_plots.py
"""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread

from evaluation.icl.plots import Plot, make_plots, write_plots, write_report

BLUE, RED = (0x2B, 0x6C, 0xB0), (0xC5, 0x30, 0x30)


def record(loss: float, distance: float | None = 0.5, positions: int = 4) -> dict[str, Any]:
    """What an evaluation says of one mode; the predictors' losses follow from `loss`."""
    generalizing, memorizing = loss + 0.5, loss / 2
    found: dict[str, Any] = {
        "loss": loss,
        "generalizing_loss": generalizing,
        "relative_distance": distance,
        "position_loss": loss * torch.arange(positions, 0, -1.0),
        "position_generalizing_loss": generalizing * torch.arange(positions, 0, -1.0),
    }
    if distance is not None:
        found["memorizing_loss"] = memorizing
        found["position_memorizing_loss"] = memorizing * torch.arange(positions, 0, -1.0)
    return found


def row(
    num_tasks: int | str,
    step: int | None,
    loss: float,
    distance: float | None = 0.5,
    *,
    seed: int = 0,
    width: int = 64,
    family: str = "BallsAndUrns",
    model: dict[str, Any] | None = None,
    modes: tuple[str, ...] = ("standard", "ood"),
    positions: int = 4,
    dims: int = 8,
) -> dict[str, Any]:
    config = {
        "setting": {
            "type": family,
            "num_tasks": num_tasks,
            "num_dims": dims,
            "task_seed": seed,
            **({"noise_variance": 0.25} if family == "LinearRegression" else {}),
        },
        "model": model or {"type": "Transformer", "hidden_size": width},
        "training": {"num_steps": 1000},
        "seed": seed,
    }
    losses = {mode: loss * (1 + i) for i, mode in enumerate(modes)}
    return {
        "config": config,
        "metrics": {mode: record(v, distance, positions) for mode, v in losses.items()},
        "checkpoint": step,
        "run": f"runs/{family}-{num_tasks}-{seed}-{width}-{dims}-{model}",
    }


def frame_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    names = list(rows[0])
    return pd.DataFrame({n: pd.Series([r[n] for r in rows], dtype=object) for n in names})


def diversity() -> list[dict[str, Any]]:
    """Four numbers of tasks, three checkpoints, two seeds."""
    return [
        row(m, step, (1 + i) / step, None if m == "inf" else step / 1000, seed=seed)
        for i, m in enumerate((4, 64, 256, "inf"))
        for step in (100, 400, 1000)
        for seed in (0, 1)
    ]


def plots_of(rows: list[dict[str, Any]]) -> dict[str, Plot]:
    return {plot.name: plot for plot in make_plots(frame_of(rows))[0]}


def written(plot: Plot, folder: Path) -> tuple[list[dict[str, str]], np.ndarray]:
    """The rows of the CSV, and the picture (height, width, RGB) in 0..255."""
    [path] = write_plots([plot], folder)
    with path.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    return rows, (imread(path)[..., :3] * 255).round().astype(int)


def has_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return int((np.abs(picture - np.array(colour)).sum(-1) <= 12).sum()) > 50


def test_an_experiment_gets_all_four_plots():
    plots, missing = make_plots(frame_of(diversity()))
    assert [p.name for p in plots] == ["threshold", "transience", "phase_diagram", "context"]
    assert missing == {}


def test_threshold(tmp_path: Path):
    rows, picture = written(plots_of(diversity())["threshold"], tmp_path)
    assert [(r["mode"], r["num_tasks"]) for r in rows] == [
        (mode, count) for count in ("4", "64", "256", "inf") for mode in ("standard", "ood")
    ]
    # the last checkpoint of each run: step 1000
    assert [float(r["loss"]) for r in rows[::2]] == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3])
    assert [float(r["loss"]) for r in rows[1::2]] == pytest.approx([2e-3, 4e-3, 6e-3, 8e-3])
    assert float(rows[2]["generalizing_loss"]) == pytest.approx(0.502)
    assert float(rows[2]["memorizing_loss"]) == pytest.approx(1e-3)
    assert rows[-1]["memorizing_loss"] == "" and rows[0]["runs"] == "2"
    assert has_colour(picture, BLUE) and has_colour(picture, RED)


def test_runs_of_other_seeds_are_averaged_with_their_error():
    rows = [row(4, 10, 1.0, seed=0), row(4, 10, 3.0, seed=1), row(8, 10, 1.0)]
    [first, *_] = plots_of(rows)["threshold"].rows
    assert (first["loss"], first["runs"]) == (2.0, 2)
    # sd of 1 and 3 is sqrt(2), over sqrt(2)
    assert first["error"] == pytest.approx(1.0)
    assert "up to 2 runs" in plots_of(rows)["threshold"].caption


def test_runs_that_differ_in_more_than_their_seed_are_lines_of_their_own():
    rows = [row(m, 10, 1.0, width=width) for m in (4, 8) for width in (32, 64)]
    models = {r["model"] for r in plots_of(rows)["threshold"].rows}
    assert models == {"hidden_size=32", "hidden_size=64"}
    mlp = {"type": "MLP", "hidden_size": 64, "mup": True}
    rows = [row(m, 10, 1.0, model=model) for m in (4, 8) for model in (None, mlp)]
    models = {r["model"] for r in plots_of(rows)["threshold"].rows}
    assert models == {"Transformer", "MLP, mup=True"}
    rows = [row(m, 10, 1.0, dims=dims) for m in (4, 8) for dims in (3, 8)]
    assert {r["setting"] for r in plots_of(rows)["threshold"].rows} == {"num_dims=3", "num_dims=8"}
    assert len(plots_of(rows)["threshold"].figure.axes) == 4


def test_transience(tmp_path: Path):
    plot = plots_of(diversity())["transience"]
    rows, picture = written(plot, tmp_path)
    of_64 = [r for r in rows if r["num_tasks"] == "64" and r["mode"] == "ood"]
    assert [(r["step"], float(r["loss"])) for r in of_64] == [
        ("100", pytest.approx(0.04)),
        ("400", pytest.approx(0.01)),
        ("1000", pytest.approx(0.004)),
    ]
    assert len(plot.figure.axes) == 8
    lines = plot.figure.axes[0].get_lines()
    drawn = {line.get_label(): line for line in lines}
    assert np.asarray(drawn["model"].get_ydata()).tolist() == pytest.approx([0.01, 0.0025, 0.001])
    assert drawn["generalizing predictor (exact)"].get_linestyle() == "--"
    assert has_colour(picture, BLUE) and has_colour(picture, RED)


def test_phase_diagram(tmp_path: Path):
    plot = plots_of(diversity())["phase_diagram"]
    rows, picture = written(plot, tmp_path)
    found = {(r["num_tasks"], r["step"]): r["relative_distance"] for r in rows}
    assert {k: float(v) for k, v in found.items() if v} == {
        (m, s): int(s) / 1000 for m in ("4", "64", "256") for s in ("100", "400", "1000")
    }
    assert found["inf", "400"] == ""
    mesh: Any = plot.figure.axes[0].collections[0]
    assert (mesh.norm.vmin, mesh.norm.vmax) == (0, 1)
    values = np.ma.filled(mesh.get_array(), np.nan).reshape(4, 3)
    assert values[0].tolist() == [0.1, 0.4, 1.0] and all(map(math.isnan, values[3]))
    colours = [tuple(round(255 * c) for c in mesh.cmap(v)[:3]) for v in (0.0, 0.5, 1.0)]
    assert colours[0] == BLUE and colours[2] == RED and min(colours[1]) >= 254
    # full red, and the grey ground of what is undefined
    assert has_colour(picture, RED) and has_colour(picture, (0xC9, 0xCE, 0xD6))


def test_loss_against_context(tmp_path: Path):
    rows = diversity()
    rows.append(row(64, None, 7.0, model={"type": "LLM", "model_name": "embedded"}))
    plot = plots_of(rows)["context"]
    table, _ = written(plot, tmp_path)
    of_64 = [r for r in table if r["num_tasks"] == "64" and r["mode"] == "standard"]
    of_model = [r for r in of_64 if r["model"] == "model"]
    assert [r["position"] for r in of_model] == ["0", "1", "2", "3"]
    assert [float(r["loss"]) for r in of_model] == pytest.approx([0.008, 0.006, 0.004, 0.002])
    assert [float(r["memorizing_loss"]) for r in of_model] == pytest.approx(
        [0.004, 0.003, 0.002, 0.001]
    )
    of_llm = [r for r in of_64 if r["model"] == "embedded"]
    assert [float(r["loss"]) for r in of_llm] == pytest.approx([28.0, 21.0, 14.0, 7.0])


def test_plots_that_the_data_do_not_allow_are_explained():
    plots, missing = make_plots(frame_of([row(4, 10, 1.0)]))
    assert [plot.name for plot in plots] == ["context"]
    assert "two or more values of setting.num_tasks" in missing["threshold"]
    assert "three or more evaluated checkpoints" in missing["transience"]
    assert "two or more steps" in missing["phase_diagram"]
    rows = [row(m, s, 1.0, None) for m in (4, "inf") for s in (1, 2)]
    assert "undefined everywhere" in make_plots(frame_of(rows))[1]["phase_diagram"]
    only = row(4, 10, 1.0, positions=1, family="Classification")
    assert "one position only" in make_plots(frame_of([only]))[1]["context"]
    nothing = {**row(4, 10, 1.0), "metrics": None}
    plots, missing = make_plots(frame_of([nothing]))
    assert plots == [] and set(missing.values()) == {"nothing was evaluated yet"}
    assert len(missing) == 4


def test_families_of_tasks_are_not_mixed():
    rows = [row(m, 10, 1.0, family=f) for f in ("BallsAndUrns", "LinearRegression") for m in (4, 8)]
    names = {plot.name for plot in make_plots(frame_of(rows))[0]}
    assert {"threshold-BallsAndUrns", "threshold-LinearRegression"} <= names
    for plot in make_plots(frame_of(rows))[0]:
        assert {r["setting"] for r in plot.rows} == {""}


def test_many_rows_of_panels_stay_in_the_csv(caplog: pytest.LogCaptureFixture):
    rows = [row(m, s, 1.0) for m in range(1, 15) for s in (1, 2, 3)]
    plot = plots_of(rows)["transience"]
    assert len(plot.figure.axes) == 2 * 12
    assert len({r["num_tasks"] for r in plot.rows}) == 14
    assert "12 of 14" in caplog.text


def test_the_report_shows_plots_table_and_what_is_missing(tmp_path: Path):
    plots, missing = make_plots(frame_of([row(m, 10, 1.0) for m in (4, 8)]))
    path = tmp_path / "plots" / "report.html"
    write_report(path, "mine", plots, missing, ("run", "loss"), [("a", 0.25)])
    page = path.read_text()
    assert page.count("<svg") == len(plots) == 2
    for part in ("mine", "0.25", "Not drawn", "three or more evaluated checkpoints"):
        assert part in page
