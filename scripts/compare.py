"""Compare two models on the same items, from results that are already there.

    uv run scripts/compare.py a=logs/base.eval b=logs/tuned.eval
    uv run scripts/compare.py a=out/base b=out/tuned 'metrics=["exact_match,strict"]'
    uv run scripts/compare.py a=runs/rl_loop/XXXX b=runs/rl_loop/XXXX a_part=0 b_part=30

a and b are logs of inspect_ai (.eval or .json), samples_*.jsonl of lm-eval --log_samples (or a
folder of them), results of eval.py (eval_results/XXXX.eval-results.yaml), or run directories of
rl_loop.py or ttt.py. Items are matched by their ids, and what does not match is counted and shown.
For each metric: the mean difference b - a with its 95 % interval and p (Student's t over items, or
over clusters of them), Holm's correction for several metrics, the sign-flip test, McNemar's exact
test for scores of 0 and 1, and the difference that this many items would show.

Writes comparison.csv, items.csv, config.yaml and report.html under runs/compare/<run_id>, or
log_path.
"""

import logging
from pathlib import Path

import chz
from dotenv import load_dotenv

from evaluation.compare.comparison import choose_metrics, compare, match_items
from evaluation.compare.items import Side
from evaluation.compare.report import closing_text, write_csv, write_report
from evaluation.compare.sources import KNOWN, open_side
from utils.config.entrypoint import config_entrypoint, raise_problems
from utils.config.errors import problems_of
from utils.config.help import OUTPUT, WHAT
from utils.runs.files import expanded, shown_path
from utils.runs.inputs import data_input
from utils.runs.run_dir import RunDir


@chz.chz(typecheck=True)
class Config:
    a: Path = chz.field(doc="results of the first model, such as the base", metadata=WHAT)
    b: Path = chz.field(doc="results of the second, on the same items")
    a_part: str | None = chz.field(
        default=None,
        doc="what of a: a model of eval.py's results, a step of rl_loop.py (default: the last), "
        "before or after of ttt.py domain=arc (default: after)",
    )
    b_part: str | None = chz.field(default=None, doc="what of b")
    metrics: list[str] = chz.field(default_factory=list, doc="names; default: all there are")
    cluster: str | None = chz.field(
        default=None,
        doc="field of the items that makes clusters (inspect_ai: of metadata; lm-eval: of doc); "
        "none: each item by itself; default: category of eval.py, task of ttt.py",
    )
    seed: int = chz.field(default=0, doc="of sign flips that are drawn, above 16 units")

    log_path: Path | None = chz.field(default=None, doc="run directory", metadata=OUTPUT)

    @chz.validate
    def _check(self) -> None:
        problems = [
            f"{name}={str(path)!r}: no such file or folder; {KNOWN} is needed"
            for name, path in (("a", self.a), ("b", self.b))
            if not expanded(path).exists()
        ]
        if self.seed < 0:
            problems.append(f"seed={self.seed}: 0 or more is needed")
        raise_problems(problems)


def main(config: Config) -> None:
    load_dotenv()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    sides: list[Side] = []
    raise_problems(
        problems_of(
            lambda: sides.append(open_side("a", config.a, config.a_part)),
            lambda: sides.append(open_side("b", config.b, config.b_part)),
        )
    )
    a, b = sides
    matched = match_items(a, b)
    metrics = choose_metrics(a, b, config.metrics)
    cluster = config.cluster or a.cluster
    if cluster == "none":
        cluster = None
    rows = compare(a, b, matched, metrics, cluster, seed=config.seed)
    # what was read of a and b, which may be folders with much else in them
    read = {
        name: data_input(str(side.path), [side.model, *side.items.values()])
        for name, side in (("a", a), ("b", b))
    }
    with RunDir.open("compare", config.log_path, config, data=read) as run:
        write_csv(run.path, a, b, matched, rows, cluster)
        report = write_report(run.path, a, b, matched, rows, cluster)
    print(closing_text(a, b, matched, rows, cluster))
    print(f"\nTables: {shown_path(run.path)}/*.csv\nReport: {shown_path(report)}")


if __name__ == "__main__":
    config_entrypoint(main)
