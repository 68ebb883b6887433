"""Test-time training on BIG-Bench-Hard, as scripts/ttt.py runs it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from training.adapt import require_adapters
from training.api import ServiceClient
from training.domains.bbh.config import BBHConfig
from training.domains.bbh.data import TaskData, load_data
from training.domains.bbh.methods import TRAINED, BBHRun, TaskResult
from training.domains.bbh.report import make_report
from training.domains.bbh.results import (
    HEADERS,
    append_result,
    copy_problems,
    mean_accuracy,
    read_results,
    result_rows,
    write_log,
)
from training.domains.bbh.tasks import BY_NAME
from training.loop import require_models
from training.models import check_rank, context_length, load_tokenizer, resolve_model
from utils.config.entrypoint import as_config_errors, problems_of, raise_problems
from utils.runs.files import atomic_write_bytes, expanded
from utils.runs.inputs import Input, data_input
from utils.runs.live_report import LiveReport
from utils.runs.report import Report
from utils.runs.run_dir import RunDir
from utils.runs.tables import text_table

__all__ = ["BBHConfig", "BBHTestTime"]
logger = logging.getLogger(__name__)


class BBHTestTime:
    def __init__(self, config: Any) -> None:
        self.config = config
        self._data: list[TaskData] = []
        self._loaded: BBHRun | None = None
        problems = config.problems() + problems_of(self._check_model)
        if config.output_file is not None:
            problems += copy_problems(config.output_file, config.log_path)
        for name, least in (("max_parallel_adapters", 1), ("seed", 0)):
            if getattr(config, name) < least:
                problems.append(f"{name}={getattr(config, name)}: at least {least} is needed")
        # unknown tasks have no data to complain about, and the hub is slow to ask
        if not problems or (config.data_dir and not problems_of(config.chosen_tasks)):
            problems += problems_of(self._load)
        raise_problems(problems)

    def _check_model(self) -> None:
        if self.config.method in TRAINED:
            check_rank(self.config.model_name, "lora_rank", self.config.lora_rank)
        else:
            resolve_model(self.config.model_name)

    def _load(self) -> None:
        config = self.config
        self._data = load_data(
            config.chosen_tasks(),
            data_dir=config.data_dir,
            source=config.source,
            all_named=bool(config.tasks),
            seed=config.seed,
            size=config.generated_size,
            k=config.k,
        )

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

    def data(self) -> dict[str, Input]:
        """Where the items come from may change, the hub can be reached now, say; they may not."""
        return {
            f"items of {found.task.name}": data_input(found.source, found.items)
            for found in self._data
        }

    def load(self, service: ServiceClient, run: RunDir) -> None:
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
            if len(read_results(run.path)) < len(self._data):
                require_models(run, service, {"model_name": config.model_name})
                if config.method in TRAINED:
                    require_adapters(service, config.model_name, settings.adapt)
            self._loaded = BBHRun(service, tokenizer, settings, run.path)

    def train_and_answer(self, run: RunDir) -> None:
        assert self._loaded is not None
        done = read_results(run.path)
        if done:
            logger.info("%d of %d tasks are done already", len(done), len(self._data))
        # a kill may have come between a task's record and its metrics
        run.truncate_logs({})
        for number in range(1, len(done) + 1):
            _log_metrics(run, done[:number])
        names = [result.task for result in done]
        with self._report(run, done) as live:
            for result in self._loaded.results(self._data, names):
                append_result(run.path, result)
                done.append(result)
                _log_metrics(run, done)
                logger.info("%s: %.1f %%", result.task, result.accuracy)
                live.refresh()

    def _results(self, run: RunDir) -> list[TaskResult]:
        order = {d.task.name: place for place, d in enumerate(self._data)}
        return sorted(read_results(run.path), key=lambda result: order[result.task])

    def _report(self, run: RunDir, done: Sequence[TaskResult]) -> LiveReport:
        name = self.config.experiment_name(self.config.seed)

        def make() -> Report:
            results = self._results(run)
            rows = result_rows(results, lambda task: BY_NAME[task].chance) if results else []
            return make_report(run.path.name, name, results, self._data, rows)

        return LiveReport(
            run.path / "report.html", make, "task", lambda: len(done), len(self._data)
        )

    def finish(self, run: RunDir) -> str:
        config = self.config
        results = self._results(run)
        name = config.experiment_name(config.seed)
        if config.output_file is not None:
            # somebody may have made it since the start
            raise_problems(copy_problems(config.output_file, run.path))
        log = write_log(run.path, results, name, trained=config.method in TRAINED)
        if config.output_file is not None:
            atomic_write_bytes(expanded(config.output_file), log.read_bytes())
        rows = result_rows(results, lambda task: BY_NAME[task].chance)
        report = self._report(run, results).finish()
        sources = ", ".join(dict.fromkeys(d.source for d in self._data))
        return (
            f"\n{name}, items from {sources}\n\n{text_table(HEADERS, rows)}\n\nLog: {log}\n"
            f"Report: {report}"
        )


def _log_metrics(run: RunDir, done: Sequence[TaskResult]) -> None:
    """The last task's line, with the mean over the tasks so far."""
    last = done[-1]
    values = {f"accuracy/{last.task}": last.accuracy, "items": last.num_items}
    run.log_metrics(len(done), {**values, "accuracy/mean": mean_accuracy(done)})
