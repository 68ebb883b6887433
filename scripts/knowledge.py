"""What a model knows of passages after training on different edits of them: one table.

    uv run scripts/knowledge.py
    uv run scripts/knowledge.py 'rows=["in-context","passage","model"]' 'forms=["qa","statements"]'
    uv run scripts/knowledge.py setting=cpt n_passages=200 source=squad model_name=path/to/model
    uv run scripts/knowledge.py edits_file=path/to/edits.jsonl dry_run=true

Every row is a way to let the model know a passage: not at all, by reading it, by an adapter trained
on the passage alone, on edits (of templates, of the untrained model, of another model, of a file),
on the answers of the model that reads it. Each has its accuracy with an interval, the difference to
the passage alone, what was gained and lost, and what it cost. docs/knowledge.md says what the rows
are. Writes config.yaml, edits.jsonl, outcomes.jsonl, table.csv, results.json, seal/ROW.json (in
SEAL's layouts) and report.html under runs/knowledge/<run_id>, or log_path; the same command with
that log_path goes on with the runs that are not done.
"""

import contextlib
import logging
import time
from dataclasses import asdict
from pathlib import Path

import chz
from dotenv import load_dotenv

from evaluation.knowledge.estimate import check_pooled, check_prompts, dry_run_text, probe
from evaluation.knowledge.knowledge_report import (
    make_report,
    reliabilities,
    table_texts,
    write_files,
)
from evaluation.knowledge.rows import make_plan, writers_needed
from evaluation.knowledge.seal_reports import write_seal_reports
from evaluation.knowledge.table_config import TableConfig
from evaluation.knowledge.table_run import TableRun
from evaluation.knowledge.task import check, make_rules, make_writers
from evaluation.knowledge.writing import expected_edits
from training.domains.knowledge.grading import RuleJudge
from training.domains.knowledge.inner import InnerLoop
from training.domains.knowledge.llm_judge import open_judge
from training.domains.knowledge.reliability import warn_unreliable
from training.endpoints import Endpoints
from training.loop import connect_for_run, exit_on_interrupt, require_models
from utils.config.entrypoint import (
    as_config_errors,
    config_entrypoint,
    held_log,
    problems_of,
    raise_problems,
)
from utils.config.help import OUTPUT
from utils.llm.roles import describe_roles
from utils.llm.runs import exit_unfinished
from utils.runs.files import shown_path
from utils.runs.inputs import data_input
from utils.runs.live_report import LiveReport
from utils.runs.run_dir import RunDir, new_run_path

# what a run may be taken up again with
MAY_CHANGE = ("dry_run", "max_parallel_adapters", "max_concurrency", "judge.timeout")
MAY_CHANGE += ("generator.timeout",)


@chz.chz(typecheck=True)
class Config(TableConfig):
    log_path: Path | None = chz.field(
        default=None, doc="run directory; an existing one resumes", metadata=OUTPUT
    )
    save_adapters: bool = chz.field(
        default=False, doc="keep every adapter (PEFT format); always where nothing can be asked"
    )


def main(config: Config) -> None:
    load_dotenv()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    started = time.perf_counter()
    log_path = config.log_path or new_run_path("knowledge", about=config.setting)
    with (
        Endpoints(device=config.device, dtype=config.dtype) as endpoints,
        contextlib.ExitStack() as stack,
    ):
        # what only the loaded models tell comes last
        with held_log():
            with as_config_errors():
                task = check(config, endpoints)
                service = connect_for_run(
                    log_path,
                    config.backend,
                    base_url=config.base_url,
                    device=config.device,
                    dtype=config.dtype,
                    num_engines=config.num_engines,
                    sampler=config.sampler,
                    sampler_options=config.sampler_options,
                )
            stack.enter_context(contextlib.closing(service))
            counter = InnerLoop(
                service, task.tokenizer, task.settings, RuleJudge(), task.source.shots
            )
            rules = make_rules(config, counter)
            with as_config_errors():
                writers_of_rows = writers_needed(task.rows, rules)
                edits = expected_edits(
                    writers_of_rows, task.source, task.passages, config.seeds, config.k
                )
                expected = make_plan(task.passages, task.rows, edits, rules)
                check_prompts(counter.answerer, expected)
                check_pooled(counter, expected)
            if config.dry_run:
                speed = probe(counter, task.passages[0])
                print(f"\n{dry_run_text(counter, task.passages, expected, speed)}")
                return
            opened = RunDir.open(
                "knowledge",
                log_path,
                config,
                resume_fields_ignored=MAY_CHANGE,
                data={"passages": data_input(task.source.name, map(asdict, task.passages))},
            )
            run = stack.enter_context(opened)
            stack.enter_context(exit_unfinished(run.path))
            stack.enter_context(exit_on_interrupt(run, "runs that are done are kept"))
            require_models(run, service, {"model_name": config.model_name})
            describe_roles(*task.roles)
            endpoints.require_models(run, {f"{role.name}.model": role for role in task.roles})
            raise_problems([f"inner_targets: {p}" for p in problems_of(counter.require_adapters)])
            judge = stack.enter_context(
                open_judge(
                    config.judge_kind,
                    config.judge,
                    endpoints,
                    seed=config.seed,
                    run=run,
                    max_concurrency=config.max_concurrency,
                )
            )
        loop = InnerLoop(service, task.tokenizer, task.settings, judge, task.source.shots)
        writers = make_writers(config, task, run, service, endpoints)
        table = TableRun(
            service,
            task.tokenizer,
            loop,
            task.passages,
            task.rows,
            rules,
            {name: writers.edits(name, task.passages) for name in writers_of_rows},
            others=(others := task.source.passages("train")),
            other_edits=writers.edits(config.means.skill_writer, others) if others else (),
            folder=run.path,
            batch_size=2 * config.max_parallel_adapters,
            top_k=config.distill_top_k,
            keep=config.save_adapters or not task.has_questions,
        )
        title = f"knowledge: {task.source.name}, {len(task.passages)} passages"
        live = LiveReport(
            run.path / "report.html",
            lambda: make_report(title, f"setting={config.setting}", table.results()),
            "run",
            lambda: table.num_done,
            table.num_runs,
        )
        with live:
            table.carry_out(live.refresh)
        results = table.results()
        about = {"dataset": task.source.name, "setting": config.setting}
        write_files(run.path, results, about, table.adapters())
        write_seal_reports(
            *(run.path, results, table.outcomes, task.settings),
            dataset=task.source.name,
            setting=config.setting,
        )
        print(f"\n{table_texts(results)}")
        for _, kind, found in reliabilities(results):
            if kind == "logprob":
                warn_unreliable(found, kind)
        report = live.finish()
    print(f"\n{time.perf_counter() - started:.0f} s in all. Report: {shown_path(report)}")


if __name__ == "__main__":
    config_entrypoint(main)
