"""Learn one passage after the other, and see what each self-edit does to what was learned before.

    uv run scripts/continual.py n_passages=6 n_sequences=4
    uv run scripts/continual.py method=merge n_passages=8 n_sequences=8 source=squad \\
        data_path=path/to/dev-v1.1.json model_name=path/to/model edits=model
    uv run scripts/continual.py 'methods=["merge","replay=2","replay=8","gate=em","joint"]'
    uv run scripts/continual.py 'aggregate=["runs/continual/A","runs/continual/B"]'

Methods: merge (each adapter on top of all before, SEAL's merging without its rounding),
replay=LINES (of each earlier self-edit, among the new ones), gate=em|nats|kl (scaled down until it
costs little accuracy, log-probability or divergence), distill (learn what the model before says
with the passage in view), library (an adapter for each passage, and BM25 finds it), joint (all
passages at once, at the end).

Writes summary.METHOD.json (SEAL's layout), results.json, steps.jsonl, samples.jsonl, config.yaml
and report.html under runs/continual/<run_id>, or log_path; the same command with that log_path goes
on after the last step.
"""

import contextlib
import dataclasses
import logging
import time
from pathlib import Path

import chz
from dotenv import load_dotenv

from evaluation.knowledge.continual_plan import plan_text
from evaluation.knowledge.continual_report import (
    averages_report,
    averages_text,
    make_report,
    results_text,
)
from evaluation.knowledge.continual_steps import (
    Step,
    Steps,
    learned_accuracy,
    standing,
    write_results,
)
from evaluation.knowledge.summaries import Deviation, aggregate, read_summaries, write_summary
from training.domains.knowledge.answers import Answerer
from training.domains.knowledge.config import inner_settings
from training.domains.knowledge.continual import Continual
from training.domains.knowledge.continual_config import ContinualConfig, chosen_methods
from training.domains.knowledge.continual_edits import EditSource
from training.domains.knowledge.continual_passages import Drawn, check_questions, draw
from training.domains.knowledge.inner import InnerLoop
from training.domains.knowledge.llm_judge import open_judge
from training.endpoints import Endpoints
from training.loop import connect_for_run, exit_on_interrupt, require_models
from training.models import check_rank, context_length, load_tokenizer, resolve_model
from utils.config.entrypoint import (
    as_config_errors,
    config_entrypoint,
    held_log,
    problems_of,
    raise_problems,
)
from utils.config.help import OUTPUT, group
from utils.interrupts import uninterrupted
from utils.llm.runs import exit_unfinished
from utils.runs.files import expanded, shown_path
from utils.runs.inputs import data_input
from utils.runs.live_report import LiveReport
from utils.runs.progress import progress
from utils.runs.report import Report
from utils.runs.run_dir import RunDir, new_run_path
from utils.runs.sinks import sink_factories

logger = logging.getLogger(__name__)

# what a run may be taken up again with; further methods begin at their first step
MAY_CHANGE = ("methods", "method", "max_parallel_adapters", "keep_adapters", "dry_run", "sinks")


@chz.chz(typecheck=True)
class Config(ContinualConfig):
    aggregate: list[str] = chz.field(
        default_factory=list,
        doc="summaries in SEAL's layout, or folders of finished runs: their average, and no run",
        metadata=group("Average of runs"),
    )
    deviation: Deviation = chz.field(
        default="pooled",
        doc="of aggregate: pooled (all sequences as one sample) or averaged (as SEAL's files)",
    )

    log_path: Path | None = chz.field(
        default=None, doc="run directory; an existing one resumes", metadata=OUTPUT
    )
    dry_run: bool = chz.field(default=False, doc="print the plan, and stop")
    keep_adapters: bool = chz.field(
        default=False, doc="of all steps; else those that are needed to go on, and the last"
    )
    sinks: list[str] = chz.field(default_factory=list, doc="wandb, tensorboard, trackio")


def main(config: Config) -> None:
    load_dotenv()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if config.aggregate:
        average(config)
        return
    started = time.perf_counter()
    methods = chosen_methods(config)
    log_path = config.log_path or new_run_path("continual")
    with contextlib.ExitStack() as stack:
        # what only the loaded model tells comes last
        with held_log(), as_config_errors():
            raise_problems(
                problems_of(
                    lambda: sink_factories(config.sinks), lambda: resolve_model(config.model_name)
                )
            )
            if config.inner_rank is not None:
                check_rank(config.model_name, "inner_rank", config.inner_rank)
            source, drawn = draw(config)
            tokenizer = load_tokenizer(config.model_name)
            edits = EditSource(config, source, tokenizer, drawn.learned)
            settings = inner_settings(config, source, context_length(config.model_name))
            check_questions(drawn, Answerer(tokenizer, settings, source.shots))
            if config.dry_run:
                plan = plan_text(
                    *(methods, drawn, edits.given, settings, tokenizer), ask_ahead=config.ask_ahead
                )
                print(f"{plan}\n\nNothing was written.")
                return
            service = connect_for_run(
                log_path, "local", base_url=None, device=config.device, dtype=config.dtype
            )
            stack.enter_context(contextlib.closing(service))
            passages = [dataclasses.asdict(p) for p in (*drawn.learned, *drawn.untouched)]
            opened = RunDir.open(
                "continual",
                log_path,
                config,
                resume_fields_ignored=MAY_CHANGE,
                data={"passages": data_input(f"source={source.name}", passages)},
                sinks=config.sinks,
            )
            run = stack.enter_context(opened)
            stack.enter_context(exit_on_interrupt(run, "steps that are done are kept"))
            require_models(run, service, {"model_name": config.model_name})
            endpoints = stack.enter_context(Endpoints(device=config.device, dtype=config.dtype))
            edits.require_models(run, endpoints)
            judge = stack.enter_context(
                open_judge(
                    *(config.judge_kind, config.judge, endpoints),
                    seed=config.seed,
                    run=run,
                )
            )
            inner = InnerLoop(service, tokenizer, settings, judge, source.shots)
            # rank and alpha were checked
            raise_problems([f"inner_targets: {p}" for p in problems_of(inner.require_adapters)])
            continual = Continual(
                *(service, tokenizer, inner, judge, drawn.sequences_S_K, drawn.untouched),
                seed=config.seed,
                ask_ahead=config.ask_ahead,
                budget=config.gate_budget,
                run_path=run.path,
            )
        with exit_unfinished(run.path):
            edits.generate(run.path, endpoints)
        steps = Steps(run, keep_all=config.keep_adapters)
        learn(config, drawn, edits, continual, steps, run)
        write_results(
            *(run.path, steps, methods, drawn), dataset=source.name, base_model=config.model_name
        )
        print(f"\n{results_text([steps.result(m, config.n_passages) for m in methods])}")
    report = shown_path(run.path / "report.html")
    print(f"\n{time.perf_counter() - started:.0f} s in all. Report: {report}")


def learn(
    config: Config,
    drawn: Drawn,
    edits: EditSource,
    continual: Continual,
    steps: Steps,
    run: RunDir,
) -> None:
    """What is not done yet: row 0, and all steps, those of all methods in turn."""
    methods, k = chosen_methods(config), config.n_passages
    waiting = [
        (number, method)
        for number in range(1, k + 1)
        for method in methods
        if number >= steps.next_number(method, k)
    ]
    total = sum(1 if method.kind == "joint" else k for method in methods)
    done = total - len(waiting)

    def page() -> Report:
        notes = [f"model: {config.model_name}; passages: {drawn.source}; self-edits: {edits.told}"]
        results = [steps.result(m, k) for m in methods] if steps.before_all_S else []
        return make_report(run.run_id, results, notes=notes)

    live = LiveReport(run.path / "report.html", page, "step", lambda: done, total)
    with live, progress(total, "continual", "step", initial=done) as bar:
        if not steps.before_all_S:
            steps.add_before_all(continual.before_all())
        for number, method in waiting:
            began = time.perf_counter()
            places = range(k) if method.kind == "joint" else [number - 1]
            new_S = edits.next(drawn, places, steps.adapters(method), continual, method)
            outcomes_S = continual.step(method, number, standing(steps, method, new_S))
            step = Step(number, outcomes_S, time.perf_counter() - began)
            with uninterrupted():
                for s, outcome in enumerate(outcomes_S):
                    run.log_sample(
                        {
                            **{"method": method.label, "step": number, "sequence": s},
                            "passages": [drawn.sequences_S_K[s][p].id for p in places],
                            "edits": [dataclasses.asdict(edit) for edit in new_S[s]],
                            **{"scale": outcome.scale, "failed": outcome.failed},
                            "answers": outcome.row.answers_Q,
                        }
                    )
                known = learned_accuracy(outcomes_S, number)
                metrics = {f"{method.label}/known": known, f"{method.label}/seconds": step.seconds}
                run.log_metrics(number, metrics)
                steps.add(method, step)
            for s, outcome in enumerate(outcomes_S):
                if outcome.failed is not None:
                    logger.warning(
                        "%s, step %d, sequence %d learned nothing: %s",
                        *(method.label, number, s + 1, outcome.failed),
                    )
            done += 1
            bar.update(1)
            bar.add(tokens=sum(outcome.trained_tokens for outcome in outcomes_S))
            live.refresh()
    live.finish()


def average(config: Config) -> None:
    """One summary for each method of finished runs."""
    with held_log(), as_config_errors():
        by_method = {
            name: aggregate(summaries, config.deviation)
            for name, summaries in read_summaries(map(expanded, config.aggregate)).items()
        }
    if config.dry_run:
        print(f"{averages_text(by_method)}\n\nNothing was written.")
        return
    log_path = config.log_path or new_run_path("continual", about="aggregate")
    with RunDir.open("continual", log_path, config) as run:
        for name, summary in by_method.items():
            write_summary(run.path / name, summary, digits=4)
        averages_report(run.run_id, by_method).write(run.path / "report.html")
    print(f"{averages_text(by_method)}\n\nWritten to {shown_path(run.path)}")


if __name__ == "__main__":
    config_entrypoint(main)
