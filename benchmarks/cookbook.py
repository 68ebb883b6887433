"""Recipes of tinker-cookbook, unmodified, against scripts/serve.py.

    uv run benchmarks/cookbook.py
    uv run benchmarks/cookbook.py recipes='["sl_loop","rl_loop"]'

Makes an environment with tinker-cookbook (uv, from its cache or the index), starts the server with
a model name that the cookbook knows as an alias, and runs each recipe by its command line. What
they load from the hub lies in the directory where they run, under the hub's names: the tokenizer of
the model, and data made here (sums in words), because datasets and transformers take a folder of
that name first. Appends to benchmarks/results/cookbook.jsonl and draws the last run of each recipe
into docs/cookbook.png; ends with status 1 where a recipe fails or its measure does not improve.
"""

import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import chz
import numpy as np
from common import RESULTS, Report, Settings, prepare
from environments import variables
from server_process import ROOT, served

from training.models import resolve_model
from utils.runs.files import read_jsonl
from utils.runs.report import save_png

logger = logging.getLogger(__name__)

COOKBOOK = "0.6.1"
# it asks for a tml-renderers that no index has; none of these recipes' models is rendered by it
OVERRIDES = "tml-renderers>=0.0.1\n"
# a name that the cookbook knows, and renders as role_colon, which any tokenizer can
ALIAS = "Qwen/Qwen3.5-9B-Base"
TOKENIZER = ("config.json", "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt")
GSM8K_CARD = """---
configs:
- config_name: main
  data_files: [{split: train, path: train.jsonl}, {split: test, path: test.jsonl}]
---
"""
ROWS, TEST_ROWS = 2048, 128
RECIPE_SECONDS = 3600


@dataclass(frozen=True)
class Recipe:
    """`module` of tinker_cookbook.recipes; `measure`: the key of its metrics that is told, and has
    to go down or up where `improves` says so; `of_all`: settings that most recipes know."""

    module: str
    settings: Mapping[str, Any]
    measure: str
    improves: Literal["down", "up", "?"] = "down"
    steps: int = 12
    of_all: Mapping[str, Any] = field(
        default_factory=lambda: {"behavior_if_log_dir_exists": "raise"}
    )


SDFT = {
    "renderer_name": "role_colon",
    "lora_rank": 32,
    "groups_per_batch": 8,
    "max_tokens": 24,
    "learning_rate": 3e-4,
    "eval_every": 0,
}
RECIPES = {
    "sl_loop": Recipe(
        "sl_loop", {"batch_size": 16, "learning_rate": 1e-3}, "train_mean_nll", of_all={}
    ),
    "chat_sl": Recipe(
        "chat_sl.train",
        {
            "dataset": "sums.jsonl",
            "renderer_name": "role_colon",
            "batch_size": 16,
            "learning_rate": 1e-3,
            "eval_every": 0,
        },
        "train_mean_nll",
    ),
    "dpo": Recipe(
        "preference.dpo.train",
        {"renderer_name": "role_colon", "batch_size": 8, "learning_rate": 3e-4},
        "dpo_loss",
    ),
    "sdft": Recipe("sdft.train", SDFT, "sdft/mean_teacher_entropy", improves="?", steps=6),
    "sdft reverse": Recipe(
        "sdft.train", {**SDFT, "reverse": True}, "sdft/reverse_kl_mean", steps=6
    ),
    "math_rl": Recipe(
        "math_rl.train",
        {
            "env": "arithmetic",
            "renderer_name": "role_colon",
            "loss_fn": "importance_sampling",
            "groups_per_batch": 16,
            "group_size": 8,
            # the sum and the text that ends a turn
            "max_tokens": 8,
            "learning_rate": 3e-4,
            "eval_every": 0,
        },
        "env/all/reward/total",
        improves="up",
    ),
    "rl_loop": Recipe(
        "rl_loop",
        {
            "loss_fn": "importance_sampling",
            "batch_size": 8,
            "group_size": 8,
            "max_tokens": 16,
            "learning_rate": 3e-4,
        },
        "reward/total",
        improves="up",
        of_all={},
    ),
}


@chz.chz(typecheck=True)
class Config(Settings):
    recipes: list[str] = chz.field(
        default_factory=lambda: list(RECIPES), doc=f"of {', '.join(RECIPES)}"
    )
    environment: Path | None = chz.field(
        default=None, doc="folder for the cookbook's environment, made if absent; default: for once"
    )

    @chz.validate
    def _recipes(self) -> None:
        if unknown := sorted(set(self.recipes) - RECIPES.keys()):
            raise ValueError(f"recipes={unknown}: allowed are {', '.join(RECIPES)}")


def main(config: Config) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = prepare(config, {})
    report = Report("cookbook", config)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        python = cookbook_environment(config.environment or place / "environment")
        work = place / "work"
        write_hub(work, config.model)
        aliases = f"aliases={json.dumps({ALIAS: config.model})}"
        with served(
            config.model, f"device={config.device}", aliases, threads=config.threads
        ) as server:
            # datasets takes rows that it has kept for a name, whatever the folder holds now
            of_sdk = variables(
                TINKER_BASE_URL=server.url, TINKER_API_KEY=server.key, HF_HOME=str(place / "hf")
            )
            for at, name in enumerate(config.recipes):
                log = place / f"log {at}"
                command = command_of(RECIPES[name], python, log)
                problem, metrics = run_recipe(command, work, log, of_sdk)
                if not add_row(report, name, command[1:-1], problem, metrics):
                    failed.append(name)
    report.note("first and last quarter: the mean of the measure over that part of the steps")
    report.finish()
    if config.results_dir is None and not config.quick:
        draw(latest(RESULTS / "cookbook.jsonl"), ROOT / "docs" / "cookbook.png")
    if failed:
        sys.exit(1)


def cookbook_environment(folder: Path) -> Path:
    """The Python of an environment with the cookbook, the SDK that it asks for and our torch."""
    python = folder / "bin" / "python"
    if python.exists():
        return python
    subprocess.run(["uv", "venv", "--quiet", str(folder)], check=True)
    overrides = folder / "overrides.txt"
    overrides.write_text(OVERRIDES)
    packages = [f"tinker-cookbook[math-rl]=={COOKBOOK}", f"torch=={version('torch')}"]
    install = ["uv", "pip", "install", "--quiet", "--python", str(python)]
    subprocess.run([*install, "--override", str(overrides), *packages], check=True)
    return python


def command_of(recipe: Recipe, python: Path, log: Path) -> list[str]:
    settings = {
        "model_name": ALIAS,
        **recipe.settings,
        **recipe.of_all,
        "max_steps": recipe.steps,
        "log_path": log,
    }
    module = f"tinker_cookbook.recipes.{recipe.module}"
    return [str(python), "-m", module, *(f"{name}={value}" for name, value in settings.items())]


def run_recipe(
    command: list[str], work: Path, log: Path, environment: Mapping[str, str]
) -> tuple[str | None, list[dict[str, Any]]]:
    """What went wrong, and the metrics that it wrote."""
    logger.info("%s", " ".join(command[1:]))
    try:
        done = subprocess.run(
            command,
            cwd=work,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=RECIPE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {RECIPE_SECONDS} s", []
    problem = None
    if done.returncode:
        logger.info("%s", done.stdout[-5000:])
        problem = done.stdout.strip().splitlines()[-1]
    metrics = log / "metrics.jsonl"
    return problem, read_jsonl(metrics) if metrics.exists() else []


def add_row(
    report: Report,
    name: str,
    arguments: list[str],
    problem: str | None,
    metrics: list[dict[str, Any]],
) -> bool:
    """Whether all went well."""
    recipe = RECIPES[name]
    values = [row[recipe.measure] for row in metrics if recipe.measure in row]
    first, last = ends(values)
    if problem is None and not is_improved(recipe, first, last):
        problem = f"{recipe.measure} was to go {recipe.improves}"
    report.add(
        name,
        f"tinker-cookbook {COOKBOOK}",
        steps=len(values),
        measure=recipe.measure,
        **{"first quarter": first, "last quarter": last},
        outcome=problem or "ok",
        arguments=arguments,
        values=values,
    )
    return problem is None


def ends(values: list[float]) -> tuple[float, float]:
    """Means of the first and the last quarter."""
    if not values:
        return float("nan"), float("nan")
    quarter = max(1, len(values) // 4)
    return float(np.mean(values[:quarter])), float(np.mean(values[-quarter:]))


def is_improved(recipe: Recipe, first: float, last: float) -> bool:
    """False where there is no measure at all."""
    if recipe.improves == "?":
        return not np.isnan(last)
    return first < last if recipe.improves == "up" else first > last


# ------------------------------------------------------------------------------------------- data


def sum_in_words(rng: np.random.Generator, most: int = 9) -> tuple[str, int, int, str]:
    """The question, the two numbers, what is counted."""
    name = rng.choice(["Ann", "Ben", "Cleo", "Dan", "Eva"])
    thing = rng.choice(["apples", "books", "coins", "shells", "stamps"])
    a, b = rng.integers(1, most + 1, 2).tolist()
    return f"{name} has {a} {thing} and gets {b} more. How many {thing} are there?", a, b, thing


def conversation(rng: np.random.Generator) -> dict[str, Any]:
    question, a, b, thing = sum_in_words(rng)
    answer = f"{a} and {b} more are {a + b}, so there are {a + b} {thing}."
    return {
        "prompt": question,
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ],
    }


def gsm8k(rng: np.random.Generator) -> dict[str, Any]:
    """So small that a small model is right sometimes; it would learn nothing otherwise."""
    question, a, b, _ = sum_in_words(rng, most=3)
    return {"question": question, "answer": f"{a} + {b} = <<{a}+{b}={a + b}>>{a + b}\n#### {a + b}"}


def preference(rng: np.random.Generator) -> dict[str, Any]:
    """The right sum, with a sentence, is better than a wrong one that stands alone."""
    question, a, b, thing = sum_in_words(rng)
    asked = f"\n\nHuman: {question}\n\nAssistant:"
    wrong = a + b + int(rng.integers(1, 4))
    return {"chosen": f"{asked} There are {a + b} {thing}.", "rejected": f"{asked} {wrong}"}


def multiple_choice(rng: np.random.Generator) -> dict[str, Any]:
    question, a, b, _ = sum_in_words(rng)
    right = int(rng.integers(4))
    texts = [str(a + b + at - right) for at in range(4)]
    return {
        "question": question,
        "choices": {"text": texts, "label": list("ABCD")},
        "answerKey": "ABCD"[right],
        "type": "mcq-4-choices",
        "domain": "Chemistry",
        "details": {"level": "L3"},
    }


def write_hub(work: Path, model: str) -> None:
    """The tokenizer and the data, in folders that have the hub's names."""
    tokenizer = work / ALIAS
    tokenizer.mkdir(parents=True)
    source = Path(resolve_model(model))
    for pattern in TOKENIZER:
        for path in source.glob(pattern):
            shutil.copy(path, tokenizer / path.name)
    rng = np.random.default_rng(0)
    write_rows(work / "sums.jsonl", [conversation(rng) for _ in range(ROWS)])
    data = {
        "HuggingFaceH4/no_robots": conversation,
        "openai/gsm8k": gsm8k,
        "Anthropic/hh-rlhf": preference,
        "hicai-zju/SciKnowEval": multiple_choice,
    }
    for name, row in data.items():
        for split, num in (("train", ROWS), ("test", TEST_ROWS)):
            write_rows(work / name / f"{split}.jsonl", [row(rng) for _ in range(num)])
    (work / "openai/gsm8k/README.md").write_text(GSM8K_CARD)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def latest(results: Path) -> dict[str, list[float]]:
    """The measure by step of each recipe's last run that went well."""
    rows = {row["case"]: row["values"] for row in read_jsonl(results) if row["outcome"] == "ok"}
    return {name: rows[name] for name in RECIPES if name in rows}


def draw(curves: Mapping[str, list[float]], path: Path) -> None:
    """A panel for each recipe, its measure by step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(curves), figsize=(2.4 * len(curves), 2.4), layout="constrained", squeeze=False
    )
    for panel, (name, values) in zip(panels[0], curves.items(), strict=True):
        panel.plot(values)
        panel.set_title(name, fontsize=10)
        panel.set_ylabel(RECIPES[name].measure, fontsize=8)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=7)
    save_png(figure, path, dpi=110)


if __name__ == "__main__":
    chz.nested_entrypoint(main)
