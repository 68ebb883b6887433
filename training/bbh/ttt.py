"""Test-time training on BIG-Bench-Hard, as scripts/ttt.py runs it."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from training.api import ServiceClient
from training.bbh.config import BBHConfig
from training.bbh.data import TaskData, load_data, require_enough
from training.bbh.methods import TRAINED, BBHRun
from training.bbh.report import write_report
from training.bbh.results import (
    HEADERS,
    append_result,
    read_results,
    result_rows,
    write_log,
)
from training.bbh.tasks import BY_NAME
from training.models import context_length, load_tokenizer, resolve_model
from utils.config import as_config_errors, problems_of, raise_problems
from utils.runs import RunDir
from utils.tables import text_table

__all__ = ["BBHConfig", "BBHTestTime"]
logger = logging.getLogger(__name__)


class BBHTestTime:
    def __init__(self, config: Any) -> None:
        self.config = config
        self._data: list[TaskData] = []
        problems = config.problems() + problems_of(lambda: resolve_model(config.model_name))
        # a task that is unknown has no data to complain about
        raise_problems(problems or problems_of(self._load))

    def _load(self) -> None:
        config = self.config
        self._data = load_data(
            config.chosen_tasks(),
            data_dir=config.data_dir,
            source=config.source,
            all_named=bool(config.tasks),
            seed=config.seed,
            size=config.generated_size,
        )
        require_enough(self._data, config.k)

    def plan(self) -> str:
        config = self.config
        evaluated = [min(len(d.items) - config.k, config.max_items or 10**9) for d in self._data]
        votes = config.vote_permutations if config.majority_vote else 1
        rows = [
            (d.task.name, d.source, len(d.items), config.k, n, n * votes)
            for d, n in zip(self._data, evaluated, strict=True)
        ]
        headers = ("task", "items from", "items", "demonstrations", "evaluated", "answers")
        return f"{config.experiment_name(config.seed)}\n\n{text_table(headers, rows)}"

    def train_and_answer(self, service: ServiceClient, run: RunDir) -> None:
        config = self.config
        with as_config_errors():
            tokenizer = load_tokenizer(config.model_name)
            settings = config.settings(
                model_name=config.model_name,
                seed=config.seed,
                max_parallel=config.max_parallel_adapters,
                context=context_length(config.model_name) or math.inf,
                num_tasks=len(self._data),
            )
        done = [result.task for result in read_results(run.path)]
        if done:
            logger.info("%d of %d tasks are done already", len(done), len(self._data))
        for result in BBHRun(service, tokenizer, settings).results(self._data, done):
            append_result(run.path, result)
            run.log_metrics(
                len(read_results(run.path)),
                {f"accuracy/{result.task}": result.accuracy, "items": result.num_items},
            )
            logger.info("%s: %.1f %%", result.task, result.accuracy)

    def finish(self, run: RunDir) -> str:
        config = self.config
        order = {d.task.name: place for place, d in enumerate(self._data)}
        results = sorted(read_results(run.path), key=lambda result: order[result.task])
        name = config.experiment_name(config.seed)
        log = write_log(run.path, results, name, trained=config.method in TRAINED)
        rows = result_rows(results, lambda task: BY_NAME[task].chance)
        report = write_report(run.path, name, results, self._data, rows)
        sources = ", ".join(dict.fromkeys(Path(d.source).name for d in self._data))
        return (
            f"\n{name}, items from {sources}\n\n{text_table(HEADERS, rows)}\n\nLog: {log}\n"
            f"Report: {report}"
        )
