"""Test-time training on ARC, as scripts/ttt.py runs it: an adapter per task, trained on variations
of the task's own demonstrations (arXiv 2411.07279)."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from training.adapt import AdaptJob, adapt, require_adapters
from training.adapter_proof import AdapterProof
from training.api import SamplingClient, ServiceClient
from training.domains.arc.answers import Answerer, Question
from training.domains.arc.grids import FAMILIES
from training.domains.arc.tasks import Task
from training.domains.arc.ttt_config import ArcTTTConfig
from training.domains.arc.ttt_data import (
    DIRECT,
    SHARED,
    SHARED_NAME,
    TRAINED,
    Prepared,
    TrainingData,
    TTTSettings,
)
from training.domains.arc.ttt_results import (
    HEADERS,
    TASKS,
    Answered,
    TaskRecord,
    answered,
    append_record,
    make_report,
    metrics,
    read_records,
    record_rows,
    write_submission_of,
)
from training.loop import require_models
from training.models import check_rank, context_length, load_tokenizer
from utils.config.entrypoint import as_config_errors, problems_of, raise_problems
from utils.runs.files import shown_path
from utils.runs.inputs import Input, data_input
from utils.runs.live_report import LiveReport
from utils.runs.progress import progress
from utils.runs.report import Report
from utils.runs.run_dir import RunDir
from utils.runs.tables import text_table

__all__ = ["ArcTTTConfig", "ArcTestTime"]
logger = logging.getLogger(__name__)


class ArcRun:
    """Trains and asks the tasks of a run; `max_parallel` adapters at a time."""

    def __init__(
        self,
        service: ServiceClient,
        tokenizer: Any,
        settings: TTTSettings,
        run_path: Path | None = None,
    ) -> None:
        self._service = service
        self._proof = AdapterProof(service, settings.base_model, run_path, with_answers=True)
        self._answerer = Answerer(tokenizer, settings)
        self._data = TrainingData(tokenizer, self._answerer, settings)
        self.settings = settings

    def records(self, tasks: Sequence[Task], done: Sequence[str]) -> Iterator[TaskRecord]:
        """One record per task that is not in `done`, as they come. A shared adapter is trained on
        all tasks, also on those that are done."""
        left = [task for task in tasks if task.id not in done]
        if not left:
            return
        base = self._service.create_sampling_client(base_model=self.settings.base_model)
        if self.settings.method in SHARED:
            yield from self._shared(tasks, left, base)
            return
        for chunk in self._chunks(left):
            started = time.perf_counter()
            # asked first, so that the base model answers along with the first training step
            before = [self._answerer.ask(task, base) for task in chunk]
            prepared = [self._data.prepare(task) for task in chunk]
            jobs = [self._data.job(p) for p in prepared]
            after = self._train(jobs, chunk) if self.settings.method in TRAINED else None
            seconds = time.perf_counter() - started
            yield from self._records(prepared, jobs, before, after, seconds)

    def _shared(
        self, tasks: Sequence[Task], left: list[Task], base: SamplingClient
    ) -> Iterator[TaskRecord]:
        started = time.perf_counter()
        prepared = {task.id: self._data.prepare(task) for task in tasks}
        job = self._data.shared_job(list(prepared.values()))
        samplers: list[SamplingClient] = []
        self._adapt([job], lambda _, sampler: samplers.append(sampler))
        seconds = (time.perf_counter() - started) / len(left)
        for chunk in self._chunks(left):
            before = [self._answerer.ask(task, base) for task in chunk]
            after = [self._ask_trained(task, samplers[0]) for task in chunk]
            chosen = [prepared[task.id] for task in chunk]
            jobs = [job] * len(chunk)
            yield from self._records(chosen, jobs, before, after, seconds * len(chunk))

    def _chunks(self, tasks: list[Task]) -> Iterator[list[Task]]:
        size = self.settings.adapt.max_parallel
        for start in range(0, len(tasks), size):
            yield tasks[start : start + size]

    def _train(self, jobs: list[AdaptJob], tasks: list[Task]) -> list[list[Question]]:
        """What the tasks' adapters are asked, each as soon as it is trained."""
        asked: dict[int, list[Question]] = {}

        def ask(index: int, sampler: SamplingClient) -> None:
            asked[index] = self._ask_trained(tasks[index], sampler)

        self._adapt(jobs, ask)
        return [asked[index] for index in range(len(jobs))]

    def _adapt(
        self, jobs: list[AdaptJob], on_adapted: Callable[[int, SamplingClient], None]
    ) -> None:
        settings = self.settings
        adapt(
            self._service,
            settings.base_model,
            jobs,
            settings.adapt,
            on_adapted=on_adapted,
            desc=settings.method,
            proof=self._proof,
        )

    def _ask_trained(self, task: Task, sampler: SamplingClient) -> list[Question]:
        shown = () if self.settings.method in DIRECT else task.train
        return self._answerer.ask(Task(task.id, shown, task.test), sampler)

    def _records(
        self,
        prepared: Sequence[Prepared],
        jobs: Sequence[AdaptJob],
        before: Sequence[list[Question]],
        after: Sequence[list[Question]] | None,
        train_seconds: float,
    ) -> Iterator[TaskRecord]:
        """Waits for the answers, task by task."""
        started = time.perf_counter()
        with progress(len(prepared), "answering", "task") as bar:
            for i, (one, job) in enumerate(zip(prepared, jobs, strict=True)):
                first = self._read(one.task, before[i])
                last = None if after is None else self._read(one.task, after[i])
                bar.update()
                seconds = time.perf_counter() - started
                started = time.perf_counter()
                yield self._record(one, job, first, last, train_seconds / len(prepared), seconds)

    def _read(self, task: Task, questions: list[Question]) -> Answered:
        return answered(task, self._answerer.read(task, questions))

    def _record(
        self,
        prepared: Prepared,
        job: AdaptJob,
        before: Answered,
        after: Answered | None,
        train_seconds: float,
        eval_seconds: float,
    ) -> TaskRecord:
        settings, task, examples = self.settings, prepared.task, prepared.examples
        adapter = SHARED_NAME if settings.method in SHARED else task.id
        return TaskRecord(
            task=task.id,
            num_tests=len(task.test),
            before=before,
            after=after,
            examples={str(source): n for source, n in examples.counts.items()},
            num_generated=examples.num_generated,
            num_too_long=examples.num_too_long,
            adapter=adapter if settings.method in TRAINED else None,
            num_steps=job.num_steps(settings.adapt.batch_size),
            num_train_tokens=self._data.job(prepared).num_tokens,
            train_seconds=train_seconds,
            eval_seconds=eval_seconds,
        )


class ArcTestTime:
    def __init__(self, config: Any) -> None:
        self.config = config
        self._tasks: list[Task] = []
        self._loaded: ArcRun | None = None
        problems = [*config.task_problems(), *config.number_problems()]
        problems += problems_of(lambda: check_rank(config.model_name, "lora_rank", config.rank))
        # a task set that is unknown has no tasks to complain about
        if not config.task_problems():
            problems += problems_of(self._load)
        raise_problems(problems)

    def _load(self) -> None:
        self._tasks = self.config.load_tasks()

    def _settings(self) -> TTTSettings:
        return self.config.settings(context_length(self.config.model_name))

    def plan(self) -> str:
        config = self.config
        with as_config_errors():
            settings, tokenizer = self._settings(), load_tokenizer(config.model_name)
        answerer = Answerer(tokenizer, settings)
        data = TrainingData(tokenizer, answerer, settings)
        prepared, rows = [], []
        with progress(len(self._tasks), "planning", "task") as bar:
            for task in self._tasks:
                one = data.prepare(task)
                prepared.append(one)
                counts, too_long = one.examples.counts, one.examples.num_too_long
                num_prompts = sum(len(answerer.prompts(task, t)) for t in range(len(task.test)))
                steps = data.job(one).num_steps(settings.adapt.batch_size)
                rows.append(
                    (
                        *(task.id, len(task.train), len(task.test)),
                        *(counts.get(source, 0) for source in ("original", *FAMILIES)),
                        *(too_long, None if config.method in SHARED else steps, num_prompts),
                    )
                )
                bar.update()
        jobs = [data.shared_job(prepared)] if config.method in SHARED else map(data.job, prepared)
        total = sum(job.num_steps(settings.adapt.batch_size) for job in jobs)
        headers = ("task", "demonstrations", "tests", "original", *FAMILIES)
        table = text_table((*headers, "too long", "steps", "prompts"), rows)
        return f"{config.experiment_name}\n\n{table}\n\n{len(rows)} tasks, {total} steps in all"

    def data(self) -> dict[str, Input]:
        items = ([task.id, task.digest.hex()] for task in self._tasks)
        return {"tasks": data_input(self.config.source, items)}

    def load(self, service: ServiceClient, run: RunDir) -> None:
        config = self.config
        with as_config_errors():
            settings, tokenizer = self._settings(), load_tokenizer(config.model_name)
            if len(read_records(run.path)) < len(self._tasks):
                require_models(run, service, {"model_name": config.model_name})
                if config.method in TRAINED:
                    require_adapters(service, config.model_name, settings.adapt)
            self._loaded = ArcRun(service, tokenizer, settings, run.path)

    def train_and_answer(self, run: RunDir) -> None:
        assert self._loaded is not None
        records = read_records(run.path)
        done = [record.task for record in records]
        if done:
            logger.info("%d of %d tasks are done already", len(done), len(self._tasks))
        # a kill may have come between a task's record and its metrics
        run.truncate_logs({})
        for number in range(1, len(records) + 1):
            run.log_metrics(number, metrics(records[:number]))
        with self._report(run, records) as live:
            for record in self._loaded.records(self._tasks, done):
                append_record(run.path, record)
                records.append(record)
                run.log_metrics(len(records), metrics(records))
                logger.info("%s: solved %s", record.task, record.last.solved)
                live.refresh()

    def _report(self, run: RunDir, done: Sequence[TaskRecord]) -> LiveReport:
        order = {task.id: place for place, task in enumerate(self._tasks)}

        def make() -> Report:
            records = sorted(read_records(run.path), key=lambda record: order[record.task])
            return make_report(run.path.name, self.config.experiment_name, records, self._tasks)

        return LiveReport(
            run.path / "report.html", make, "task", lambda: len(done), len(self._tasks)
        )

    def finish(self, run: RunDir) -> str:
        order = {task.id: place for place, task in enumerate(self._tasks)}
        records = sorted(read_records(run.path), key=lambda record: order[record.task])
        name = self.config.experiment_name
        submission = write_submission_of(run.path, records)
        report = self._report(run, records).finish()
        return (
            f"\n{name}\n\n{text_table(HEADERS, record_rows(records))}\n\n"
            f"Log: {shown_path(run.path / TASKS)}\nSubmission: {shown_path(submission)}\n"
            f"Report: {shown_path(report)}"
        )
