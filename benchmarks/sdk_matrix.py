"""Every public method of the official SDK against scripts/serve.py, for several versions of it.

    uv run benchmarks/sdk_matrix.py
    uv run benchmarks/sdk_matrix.py versions='["0.38.0"]'

Each version gets an environment of its own (uv makes it, from its cache or the index) with our
torch and nothing else of ours; benchmarks/sdk_methods.py runs in it against one server. "newest" is
what the index has. Writes the table in docs/serving.md where all versions were tried, and appends
to benchmarks/results/sdk_matrix.jsonl.
"""

import importlib.metadata
import json
import logging
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import chz
from common import RESULTS
from environments import environment, variables
from server_process import ROOT, served

from training.models import resolve_model
from utils.runs.files import append_jsonl, atomic_write_text
from utils.runs.provenance import run_meta

logger = logging.getLogger(__name__)

DOCS = ROOT / "docs" / "serving.md"
METHODS = Path(__file__).parent / "sdk_methods.py"
VERSIONS = ["0.25.0", "0.30.4", "0.34.0", "0.38.0", "newest"]
BEGIN, END = "<!-- written by benchmarks/sdk_matrix.py -->", "<!-- end of what it wrote -->"
CELLS = {
    "served": "yes",
    "refused": "refused",
    "sdk": "not asked",
    "wrong": "WRONG",
    "untried": "?",
}
CLIENT_SECONDS = 600

Results = list[dict[str, Any]]


@chz.chz(typecheck=True)
class Config:
    versions: list[str] = chz.field(
        default_factory=lambda: list(VERSIONS), doc="of the SDK; newest: what the index has"
    )
    model: str = chz.field(default="embedded", doc="embedded, a folder or a hub id")


def main(config: Config) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    # a name from which clients can load the tokenizer too
    model = str(resolve_model(config.model))
    results: Results = []
    with tempfile.TemporaryDirectory() as folder, served(model) as server:
        for version in config.versions:
            if version == "newest" and newest(Path(folder)) in {found["sdk"] for found in results}:
                continue
            found = methods_of(version, server.url, server.key, model, Path(folder))
            wrong = {n: m for n, m in found["methods"].items() if m["outcome"] == "wrong"}
            logger.info(
                "tinker %s: %d methods, wrong: %s", found["sdk"], len(found["methods"]), wrong
            )
            results.append(found)
    for found in results:
        append_jsonl(RESULTS / "sdk_matrix.jsonl", {**run_meta(), **found})
    text = table(results)
    print(text)
    if config.versions == VERSIONS:
        atomic_write_text(DOCS, with_table(DOCS.read_text(encoding="utf-8"), text))


def newest(folder: Path) -> str:
    """The version of the SDK that the index has."""
    code = "import importlib.metadata; print(importlib.metadata.version('tinker'))"
    done = subprocess.run(
        [*environment_of("newest"), "python", "-c", code],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def environment_of(version: str) -> list[str]:
    """The command that runs another one where that version of the SDK is."""
    torch = f"torch=={importlib.metadata.version('torch')}"
    if version == "newest":
        return [*environment(["tinker", torch]), "--refresh-package", "tinker"]
    return environment([f"tinker=={version}", torch])


def methods_of(version: str, url: str, key: str, model: str, folder: Path) -> dict[str, Any]:
    """What benchmarks/sdk_methods.py says of that version; it runs in `folder`, where no project
    is, so that uv adds nothing of ours to the environment."""
    done = subprocess.run(
        [*environment_of(version), "python", str(METHODS), url, key, model],
        cwd=folder,
        env=variables(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=CLIENT_SECONDS,
    )
    if done.returncode:
        raise SystemExit(f"tinker {version}: ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def table(results: Results) -> str:
    """A row per method, a column per version; a dash: that version has no such method."""
    by_version = {found["sdk"]: found["methods"] for found in results}
    names = list(dict.fromkeys(name for methods in by_version.values() for name in methods))
    # clients one after the other, as in the SDK's documentation
    order = list(dict.fromkeys(name.partition(".")[0] for name in names))
    names.sort(key=lambda name: (order.index(name.partition(".")[0]), name))
    lines = [
        f"| method | {' | '.join(by_version)} | what is told |",
        f"|---|{'---|' * (len(by_version) + 1)}",
    ]
    for name in names:
        found = [methods.get(name) for methods in by_version.values()]
        cells = ["-" if one is None else CELLS[one["outcome"]] for one in found]
        told = next((one["told"] for one in reversed(found) if one and one["told"]), "")
        lines.append(f"| `{name}` | {' | '.join(cells)} | {in_cell(told)} |")
    return "\n".join(lines)


def in_cell(text: str) -> str:
    """One line, of which Markdown takes nothing as its own."""
    return re.sub(r"([|<>*_`\\])", r"\\\1", " ".join(text.split()))


def with_table(page: str, text: str) -> str:
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{DOCS} lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


if __name__ == "__main__":
    chz.nested_entrypoint(main)
