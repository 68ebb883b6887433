"""Find the ARC tasks of task_set=small: the embedded model, fine-tuned under a good self-edit, gets
most of their cells right, and neither as it is nor under a bad one.

    uv run benchmarks/arc_small_search.py
    uv run benchmarks/arc_small_search.py max_minutes=20

Tries every ARC-AGI-1 training task that fits, with more training examples for a self-edit than
scripts/rl_loop.py takes for task_set=small, and higher rates. Results go to
benchmarks/results/arc_small_search.jsonl as they come; a run goes on where the last one stopped,
then writes the table and training/domains/arc/small.json.
"""

import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import Any

import chz

from training.adapt import AdaptJob
from training.chat import render_prompt
from training.connect import connect
from training.domains.arc.config import ArcConfig
from training.domains.arc.inner import InnerLoop
from training.domains.arc.report import describe
from training.domains.arc.self_edit import SelfEdit, SelfEditError
from training.domains.arc.tasks import SMALL_FILE, Task, load_tasks
from training.domains.arc.text import task_messages
from training.models import load_tokenizer
from utils.runs.files import append_jsonl, atomic_write_text, read_jsonl
from utils.terminal import print_anything

logger = logging.getLogger(__name__)

RESULTS = Path(__file__).parent / "results" / "arc_small_search.jsonl"


def _edit(learning_rate: float, epochs: int, *families: str) -> SelfEdit:
    return SelfEdit(
        use_basic_augmentations="basic" in families,
        use_size_augmentations="size" in families,
        use_chain_augmentations="chain" in families,
        use_repeat_augmentations="repeat" in families,
        strategy="train_using_output_tokens",
        learning_rate=learning_rate,
        num_train_epochs=epochs,
    )


# None is the model as it is. The good edits are ones that the embedded model writes often. The bad
# one comes last: only tasks that a good one solves get it.
EDITS: dict[str, SelfEdit | None] = {
    "base": None,
    "plain": _edit(3e-3, 2),
    "hot": _edit(5e-3, 2),
    "long": _edit(2e-3, 3),
}
FIRST_GOOD = "plain"
BAD = ("bad", _edit(1e-4, 2))


@chz.chz(typecheck=True)
class Config:
    max_prompt_tokens: int = chz.field(default=320, doc="tasks with a longer prompt are left out")
    max_demonstrations: int = chz.field(default=4, doc="so are tasks with more demonstrations")
    max_minutes: float = chz.field(default=1e9, doc="stop after this time; run again to go on")
    at_once: int = chz.field(default=8, doc="tasks whose adapters train together")
    promising: float = chz.field(
        default=0.6, doc="share of right cells from which a second good edit is tried"
    )
    learned: float = chz.field(
        default=0.75, doc="share of right cells from which a task counts as learned"
    )
    test_share: float = chz.field(default=0.25, doc="share of the found tasks held out")


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    print_anything()
    deadline = time.monotonic() + 60 * config.max_minutes
    tokenizer = load_tokenizer("embedded")
    settings = ArcConfig(task_set="small", cap=24, inner_batch_size=2, max_learning_rate=5e-3)
    loop = InnerLoop(connect(), tokenizer, settings.inner())
    tasks = _candidates(tokenizer, loop, config)
    logger.info("%d of the ARC-AGI-1 training tasks fit", len(tasks))
    for name, edit in [*EDITS.items(), BAD]:
        if time.monotonic() < deadline:
            _run_edit(loop, tasks, name, edit, config, deadline)
    _write_table(tasks)
    _write_small(tasks, config)


def _candidates(tokenizer: Any, loop: InnerLoop, config: Config) -> list[Task]:
    sized = []
    for task in load_tasks("arc1_train"):
        messages = task_messages(task, loop.settings.grid_format)
        size = len(render_prompt(tokenizer, messages))
        fits = size <= config.max_prompt_tokens and len(task.train) <= config.max_demonstrations
        if fits:
            sized.append((size, task.id, task))
    return [task for _, _, task in sorted(sized, key=lambda item: item[:2])]


def _results() -> dict[str, dict[str, Any]]:
    """Task id -> edit -> result."""
    results: dict[str, dict[str, Any]] = {}
    for record in read_jsonl(RESULTS) if RESULTS.exists() else []:
        results.setdefault(record["task"], {})[record["edit"]] = record
    return results


def _solved_by(results: dict[str, Any]) -> list[str]:
    return [name for name in EDITS if name != "base" and results.get(name, {}).get("solved")]


def _best_cells(results: dict[str, Any]) -> float:
    return max((result["cell_accuracy"] for result in results.values()), default=0.0)


def _run_edit(
    loop: InnerLoop,
    tasks: list[Task],
    name: str,
    edit: SelfEdit | None,
    config: Config,
    deadline: float,
) -> None:
    known = _results()
    todo = [task for task in tasks if name not in known.get(task.id, {})]
    if name != "base":
        todo = [t for t in todo if not known[t.id]["base"]["solved"]]
    if name == BAD[0]:
        todo = [t for t in todo if _best_cells(known[t.id]) >= config.learned]
    elif name != "base":
        # one good edit is enough
        todo = [t for t in todo if not _solved_by(known[t.id])]
        if name != FIRST_GOOD:
            todo = [t for t in todo if _best_cells(known[t.id]) >= config.promising]
    for start in range(0, len(todo), config.at_once):
        if time.monotonic() > deadline:
            logger.info("%s: %d tasks left for the next run", name, len(todo) - start)
            return
        batch = todo[start : start + config.at_once]
        jobs = [(task, _job(loop, task, edit)) for task in batch]
        started = time.monotonic()
        outcomes = loop.run(jobs, desc=f"{name} {start + len(batch)}/{len(todo)}")
        seconds = (time.monotonic() - started) / len(batch)
        for task, outcome in zip(batch, outcomes, strict=True):
            record = {
                "task": task.id,
                "edit": name,
                "solved": outcome.score.solved,
                "cell_accuracy": round(outcome.score.cell_accuracy, 3),
                "steps": outcome.num_steps,
                "seconds": round(seconds, 1),
            }
            RESULTS.parent.mkdir(exist_ok=True)
            append_jsonl(RESULTS, record)
            if outcome.score.solved:
                logger.info("%s solved by %s", task.id, name)


def _job(loop: InnerLoop, task: Task, edit: SelfEdit | None) -> AdaptJob | None:
    """Tasks with so many demonstrations that the edit's steps pass the bound get fewer epochs."""
    while edit is not None:
        try:
            return loop.job(task, edit)
        except SelfEditError:
            edit = dataclasses.replace(edit, num_train_epochs=edit.num_train_epochs - 1)
    return None


def _write_table(tasks: list[Task]) -> None:
    results = _results()
    names = [*EDITS, BAD[0]]
    lines = ["# Which small ARC tasks the embedded model learns, by self-edit", ""]
    lines += ["Written by `uv run benchmarks/arc_small_search.py`. yes: solved; else the share of"]
    lines += ["right cells; -: not tried. The self-edits:", ""]
    lines += [f"- {n}: {describe(e)}" for n, e in [*EDITS.items(), BAD] if e is not None]
    lines += ["", "| task | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for task in tasks:
        cells = []
        for name in names:
            record = results.get(task.id, {}).get(name)
            text = "-" if record is None else f"{record['cell_accuracy']:.2f}"
            cells.append("yes" if record is not None and record["solved"] else text)
        lines.append(f"| {task.id} | " + " | ".join(cells) + " |")
    atomic_write_text(RESULTS.with_suffix(".md"), "\n".join(lines) + "\n")


def _write_small(tasks: list[Task], config: Config) -> None:
    """Every k-th found task is held out, so that both splits have the same mix of sizes."""
    results = _results()
    found = [
        task.id
        for task in tasks
        if (known := results.get(task.id, {}))
        and known.get("base", {}).get("cell_accuracy", 1.0) < config.learned
        and known.get(BAD[0], {}).get("cell_accuracy", 1.0) < config.learned
        and _best_cells(known) >= config.learned
    ]
    logger.info("%d tasks found: %s", len(found), found)
    if len(found) < 2:
        logger.warning("Too few tasks for two splits; small.json is left as it is")
        return
    test = found[:: max(2, round(1 / config.test_share))]
    splits = {"train": [task_id for task_id in found if task_id not in test], "test": test}
    atomic_write_text(SMALL_FILE, json.dumps(splits, indent=2) + "\n")


if __name__ == "__main__":
    chz.nested_entrypoint(main)
