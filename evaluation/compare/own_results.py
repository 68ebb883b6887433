"""What our own scripts leave: eval.py's results file, runs of rl_loop.py and of ttt.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.compare.items import Item, Sample, Side, as_score, join_samples
from utils.config.entrypoint import load_yaml
from utils.runs.files import read_jsonl

EVAL, RL_LOOP, TTT = "results of eval.py", "a run of rl_loop.py", "a run of ttt.py"


def read_run(folder: Path, part: str | None) -> Side:
    """The run in `folder`; a ValueError for one that has no scores of single items."""
    config = load_yaml(folder / "config.yaml")
    # sft.py has samples and evaluations too
    if (folder / "samples.jsonl").is_file() and "groups_per_batch" in config:
        return _read_rl_loop(folder, config, part)
    if (folder / "tasks.jsonl").is_file():
        read = _read_bbh if config.get("domain") == "bbh" else _read_arc
        return read(folder, config, part)
    raise ValueError(
        f"{folder}: a run, but not one of rl_loop.py or ttt.py with answers; of eval.py, name the "
        "file under eval_results/"
    )


def choose(part: str | None, parts: list[str], what: str, default: str | None) -> str:
    """The part of a file that is meant; a ValueError says which there are."""
    if part is None and default is None:
        raise ValueError(f"{what} holds {', '.join(parts)}: one of them has to be named")
    chosen = part if part is not None else default
    if chosen not in parts:
        raise ValueError(f"{what} holds {', '.join(parts)}, not {chosen!r}")
    assert chosen is not None
    return chosen


def read_eval_results(path: Path, part: str | None) -> Side:
    """One model of an eval-results file, by the first judge, on the prompts written for each
    property: score/<property>, and exhibits/<property> (the share of judgments that say so)."""
    results = load_yaml(path)
    models, conversations = results.get("models"), results.get("conversations")
    if not isinstance(models, list) or not isinstance(conversations, list):
        raise ValueError(f"{path}: no results of scripts/eval.py (it has no models, conversations)")
    labels = [str(model["label"]) for model in models]
    only = labels[0] if len(labels) == 1 else None
    label = choose(part, labels, f"{path} (models)", only)
    prompts = {prompt["id"]: prompt for prompt in results["prompts"]}
    judgments = [own for conversation in conversations for own in conversation["judgments"]]
    judge = judgments[0]["judge"] if judgments else None
    samples = []
    for conversation in conversations:
        if conversation["model"] != label:
            continue
        prompt = prompts[conversation["prompt"]]
        name = prompt["property"]
        verdicts = [
            own["verdicts"][name]
            for own in conversation["judgments"]
            if own["judge"] == judge and name in own.get("verdicts", {})
        ]
        n = len(verdicts)
        scores = {
            f"{kind}/{name}": _score(path, prompt["id"], sum(float(v[kind]) for v in verdicts) / n)
            if n
            else None
            for kind in ("score", "exhibits")
        }
        said = [m["content"] for m in conversation["messages"] if m["role"] == "assistant"]
        question = "\n\n".join(prompt["messages"])
        fields = {key: prompt[key] for key in ("category", "property")}
        item = Item(prompt["id"], scores, fields, question, "\n\n".join(said), question)
        samples.append(Sample(conversation["sample"], item))
    items, notes = join_samples(samples, f"{path}, {label}")
    return Side(path, EVAL, label, items, cluster="category", notes=notes)


def _read_rl_loop(folder: Path, config: Mapping[str, Any], part: str | None) -> Side:
    """The held-out answers at one step, the last one if none is named."""
    records = [r for r in read_jsonl(folder / "samples.jsonl") if r["kind"] == "eval"]
    steps = [str(step) for step in sorted({record["step"] for record in records})]
    if not steps:
        raise ValueError(f"{folder}: no held-out answers in samples.jsonl (eval_every=0?)")
    step = choose(part, steps, f"{folder} (steps with an evaluation)", steps[-1])
    numbers: Counter[str] = Counter()
    samples = []
    for record in records:
        if str(record["step"]) != step:
            continue
        problem = record["problem"]
        scores = {name: _score(folder, problem, record[name]) for name in ("reward", "solved")}
        item = Item(problem, scores, {}, record["prompt"], record["answer"], record["prompt"])
        samples.append(Sample(numbers[problem], item))
        numbers[problem] += 1
    items, notes = join_samples(samples, f"{folder}, step {step}")
    model = str(config.get("model_name"))
    # prompts are as each model's chat template writes them
    return Side(
        folder, RL_LOOP, f"{model}, step {step}", items, notes=notes, dialect=f"prompts of {model}"
    )


def _read_bbh(folder: Path, config: Mapping[str, Any], part: str | None) -> Side:
    if part is not None:
        raise ValueError(f"{folder}: a run of ttt.py domain=bbh has one part only, not {part!r}")
    samples = [
        Sample(
            None,
            Item(
                f"{result['task']}/{p['index']}",
                {"right": _score(folder, f"{result['task']}/{p['index']}", p["right"])},
                {"task": result["task"]},
                p["question"],
                p["answer"] or "",
                p["question"],
            ),
        )
        for result in read_jsonl(folder / "tasks.jsonl")
        for p in result["predictions"]
    ]
    items, notes = join_samples(samples, str(folder))
    model = f"{config.get('model_name')}, {config.get('method')}"
    return Side(folder, TTT, model, items, cluster="task", notes=notes)


def _read_arc(folder: Path, config: Mapping[str, Any], part: str | None) -> Side:
    records = read_jsonl(folder / "tasks.jsonl")
    parts = [name for name in ("before", "after") if any(r[name] is not None for r in records)]
    if not parts:
        raise ValueError(f"{folder}: no task is done in tasks.jsonl")
    chosen = choose(part, parts, str(folder), parts[-1])
    samples = []
    for record in records:
        answered = record[chosen] or {"answers": []}
        scores = {
            name: None
            if answered.get(name) is None
            else _score(folder, record["task"], answered[name])
            for name in ("solved", "cell_accuracy")
        }
        answer = "\n\n".join(answered["answers"])
        samples.append(Sample(None, Item(record["task"], scores, {}, "", answer, None)))
    items, notes = join_samples(samples, str(folder))
    model = f"{config.get('model_name')}, {chosen} training"
    return Side(folder, TTT, model, items, notes=notes)


def _score(path: Path, item: str, value: Any) -> float | None:
    try:
        return as_score(value)
    except ValueError as error:
        raise ValueError(f"{path}: item {item!r} has {error}") from error
