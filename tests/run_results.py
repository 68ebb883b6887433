"""What a run of a loop leaves behind, to be compared bit by bit."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from utils.config.entrypoint import to_plain
from utils.runs.files import read_jsonl
from utils.runs.run_dir import RunDir


class Results(NamedTuple):
    metrics: list[str]
    samples: list[str]
    loop_state: dict[str, Any]
    files: dict[str, bytes]

    def difference(self, other: "Results") -> str | None:
        """The first difference in words, or None."""
        for name in ("metrics", "samples"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if len(mine) != len(theirs):
                return f"{name}: {len(mine)} lines and {len(theirs)}"
            for a, b in zip(mine, theirs, strict=True):
                if a != b:
                    return f"{name}: {a}\nis not {b}"
        if self.loop_state != other.loop_state:
            return f"loop state: {self.loop_state} is not {other.loop_state}"
        different = [name for name in self.files if self.files[name] != other.files.get(name)]
        return f"files differ: {different}" if different else None


def loop_difference(run: Path, other: Path) -> str | None:
    """The first difference between two runs of a loop in words, or None."""
    return results(run).difference(results(other))


def ttt_results(run: Path) -> dict[str, Any]:
    """log.json and metrics.jsonl of a run of test-time training without the times."""
    log = json.loads((run / "log.json").read_text(encoding="utf-8"))
    tasks = [{k: v for k, v in entry.items() if not k.endswith("_time")} for entry in log]
    return {"tasks": tasks, "metrics": read_jsonl(run / "metrics.jsonl")}


def ttt_difference(run: Path, other: Path) -> str | None:
    """The first difference between two runs of test-time training in words, or None."""
    return _first_difference(ttt_results(run), ttt_results(other))


def arc_results(run: Path) -> dict[str, Any]:
    """tasks.jsonl without the times, metrics.jsonl and submission.json of a run on ARC's tasks."""
    tasks = [
        {key: value for key, value in record.items() if not key.endswith("_seconds")}
        for record in read_jsonl(run / "tasks.jsonl")
    ]
    submission = (run / "submission.json").read_text(encoding="utf-8")
    return {
        "tasks": tasks,
        "metrics": read_jsonl(run / "metrics.jsonl"),
        "submission": submission,
    }


def arc_difference(run: Path, other: Path) -> str | None:
    """The first difference between two runs on ARC's tasks in words, or None."""
    return _first_difference(arc_results(run), arc_results(other))


def continual_results(run: Path) -> dict[str, Any]:
    """steps.jsonl without the times and the names of folders, what the logs hold, and the weights
    that were left."""
    steps, weights = [], {}
    for record in read_jsonl(run / "steps.jsonl"):
        outcomes = [dict(outcome) for outcome in record.get("outcomes", [])]
        for s, outcome in enumerate(outcomes):
            folders = [run / folder for folder in outcome.pop("adapters")]
            files = [folder / "adapter_model.safetensors" for folder in folders]
            weights[f"{record['method']} {s}"] = [
                hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.exists()
            ]
        kept = {key: record[key] for key in record if key not in ("seconds", "logged", "outcomes")}
        steps.append(kept | {"outcomes": outcomes})
    metrics = [
        {key: value for key, value in record.items() if not key.endswith("/seconds")}
        for record in read_jsonl(run / "metrics.jsonl")
    ]
    samples = read_jsonl(run / "samples.jsonl")
    return {"steps": steps, "weights": weights, "metrics": metrics, "samples": samples}


def continual_difference(run: Path, other: Path) -> str | None:
    """The first difference between two runs of continual.py in words, or None."""
    return _first_difference(continual_results(run), continual_results(other))


def icl_results(run: Path) -> dict[str, Any]:
    """What training on sequences of tasks leaves: metrics.jsonl without the times, the checkpoints,
    and the last state with optimizer and random numbers."""
    from training.icl.train import load_resume_state

    metrics = [
        {key: value for key, value in record.items() if not key.startswith("speed/")}
        for record in read_jsonl(run / "metrics.jsonl")
    ]
    state = load_resume_state(run)
    assert state is not None
    weights = {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((run / "checkpoints").glob("*/model.safetensors"))
    }
    return {"metrics": metrics, "weights": weights, "state": to_plain(state["trainer"])}


def icl_difference(run: Path, other: Path) -> str | None:
    """The first difference between two runs of icl_train.py in words, or None."""
    return _first_difference(icl_results(run), icl_results(other))


def _first_difference(mine: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    for name in mine:
        if mine[name] != theirs[name]:
            return f"{name}: {mine[name]}\nis not {theirs[name]}"
    return None


def results(run: Path) -> Results:
    """Numbers in metrics.jsonl have as many digits as it takes to tell two apart; what depends on
    the clock is left out."""
    last = RunDir(run, resumed=True).last_checkpoint()
    assert last is not None
    state = json.loads((run / "loop_state" / f"{last['name']}.json").read_text())
    metrics = [
        {k: v for k, v in record.items() if not k.startswith(("time/", "speed/"))}
        for record in read_jsonl(run / "metrics.jsonl")
    ]
    folder = Path(last["state_path"])
    samples = run / "samples.jsonl"
    names = ("adapter_model.safetensors", "optimizer.safetensors", "adapter_config.json")
    return Results(
        [json.dumps(record) for record in metrics],
        samples.read_text().splitlines() if samples.exists() else [],
        {key: state[key] for key in ("step", "evaluated", "domain")},
        {name: (folder / name).read_bytes() for name in names},
    )
