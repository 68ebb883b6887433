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
SEAL's layout) and report.html under runs/knowledge/<run_id>, or log_path; the same command with
that log_path goes on with the runs that are not done.
"""

import contextlib
import logging
import math
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import chz
from dotenv import load_dotenv

from evaluation.knowledge.choice import Means, default_rows, expanded_rows, row_problems
from evaluation.knowledge.estimate import check_prompts, dry_run_text, probe
from evaluation.knowledge.knowledge_report import (
    make_report,
    reliabilities,
    table_texts,
    write_files,
)
from evaluation.knowledge.rows import (
    GENERATOR,
    NEED_QUESTIONS,
    OTHER,
    SKILL,
    UNTRAINED,
    Rules,
    Setting,
    make_plan,
    others_of,
    writers_needed,
)
from evaluation.knowledge.table_run import TableRun
from evaluation.knowledge.writing import Calls, Sampling, Writers, WrittenFile, expected_edits
from training.api import ServiceClient
from training.domains.knowledge.config import (
    KnowledgeConfig,
    chosen_preset,
    chosen_source,
    inner_settings,
    source_of,
)
from training.domains.knowledge.edits import read_edits
from training.domains.knowledge.forms import MODEL as MODEL_FORM
from training.domains.knowledge.forms import EditPrompts, PromptForm, check_form
from training.domains.knowledge.grading import RuleJudge
from training.domains.knowledge.inner import InnerLoop, InnerSettings
from training.domains.knowledge.llm_judge import open_judge
from training.domains.knowledge.own_files import read_own
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.reliability import warn_unreliable
from training.domains.knowledge.sources import Source
from training.endpoints import Endpoints
from training.loop import connect_for_run, exit_on_interrupt, require_models
from training.models import check_rank, context_length, load_tokenizer, resolve_model
from utils.config.entrypoint import (
    ConfigError,
    as_config_errors,
    config_entrypoint,
    held_log,
    problems_of,
    raise_problems,
)
from utils.config.help import EVALUATION, MODEL, OUTPUT, SAMPLING, WHAT
from utils.llm.api import Role
from utils.llm.roles import RoleConfig, describe_roles
from utils.llm.runs import exit_unfinished
from utils.runs.files import expanded, shown_path
from utils.runs.inputs import INPUT, data_input
from utils.runs.live_report import LiveReport
from utils.runs.run_dir import RunDir, new_run_path

logger = logging.getLogger(__name__)

# what a run may be taken up again with
MAY_CHANGE = ("dry_run", "max_parallel_adapters", "max_concurrency", "judge.timeout")
MAY_CHANGE += ("generator.timeout",)
# of the passage alone, which learns more slowly and is made worse by high rates
# (benchmarks/knowledge_evidence.py)
SMALL_PASSAGE_EPOCHS, SMALL_PASSAGE_RATE = 20, 1e-3


@chz.chz(typecheck=True)
class Config(KnowledgeConfig):
    setting: Setting = chz.field(
        default="single",
        doc="single: an adapter for each passage; cpt: all passages in one adapter",
        metadata=WHAT,
    )
    rows: list[str] = chz.field(
        default_factory=list, doc="of the table, docs/knowledge.md lists them; default: most"
    )
    n_passages: int | None = chz.field(
        default=None, doc="default: 6 made ones (setting=cpt: 12), else 200, or a file's"
    )
    seeds: int = chz.field(default=1, doc="of adapters and of templates' edits")
    dry_run: bool = chz.field(default=False, doc="print rows, runs and an estimate of time")

    backend: Literal["local", "tinker"] = chz.field(
        default="local", doc="where the model runs", metadata=MODEL
    )
    base_url: str | None = chz.field(default=None, doc="server of backend=tinker")
    device: str | None = chz.field(
        default=None, doc="cpu or cuda; default: cuda where there is one"
    )
    passage_epochs: int | None = chz.field(
        default=None, doc="of the passage alone; default: 20 with preset=small, else as for edits"
    )
    passage_learning_rate: float | None = chz.field(
        default=None, doc="of the passage alone; default: 1e-3 with preset=small, else as for edits"
    )
    skill_passages: int = chz.field(default=3, doc="others, that the row skill learns answering on")
    distill_top_k: int = chz.field(default=20, doc="likeliest tokens that row distillation learns")

    forms: list[str] = chz.field(
        default_factory=list,
        doc="of the rows model; default: qa with preset=small, else implications",
        metadata=SAMPLING,
    )
    k: int = chz.field(default=2, doc="edits of each passage by a model or from a file")
    edit_prompt: PromptForm | None = chz.field(
        default=None, doc="raw (for base models) or chat; default: raw with preset=seal, else chat"
    )
    use_grammar: bool = chz.field(
        default=True, doc="forms of short lines are held to words of the passage (local only)"
    )
    temperature: float = chz.field(default=1.0, doc="of edits")
    max_tokens: int = chz.field(default=384, doc="longest edit that is sampled (SEAL: 8192)")
    generator: RoleConfig = chz.field(
        default_factory=RoleConfig, doc="of row generator: another model that writes edits"
    )
    edits_file: Path | None = chz.field(
        default=None, doc="of row file: SEAL's JSON, or JSON lines with edit and id", metadata=INPUT
    )
    max_concurrency: int = chz.field(default=8, doc="calls in flight per role, local ones apart")

    choices: bool = chz.field(
        default=True,
        doc="is the right answer the likeliest of four, where questions have choices",
        metadata=EVALUATION,
    )

    log_path: Path | None = chz.field(
        default=None, doc="run directory; an existing one resumes", metadata=OUTPUT
    )
    save_adapters: bool = chz.field(
        default=False, doc="keep every adapter (PEFT format); always where nothing can be asked"
    )

    @chz.validate
    def _check(self) -> None:
        problems = []
        for name in ("n_passages", "seeds", "passage_epochs", "skill_passages", "k", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name}={value}: at least 1 is needed")
        if not 1 <= self.distill_top_k <= 20:
            problems.append(f"distill_top_k={self.distill_top_k}: 1 to 20")
        if not 0 <= self.temperature < math.inf:
            problems.append(f"temperature={self.temperature}: a number from 0 is needed")
        rate = self.passage_learning_rate
        if rate is not None and not 0 < rate < math.inf:
            problems.append(f"passage_learning_rate={rate}: a number above 0 is needed")
        if MODEL_FORM in self.forms and self.setting == "cpt":
            problems.append(
                "forms: model chooses a learning rate for each edit; not in setting=cpt"
            )
        problems += problems_of(*(partial(check_form, form) for form in self.forms))
        if not problems:
            problems += row_problems(self.rows or default_rows(self.means), self.means)
        raise_problems(problems)

    @property
    def is_small(self) -> bool:
        return chosen_preset(self) == "small"

    @property
    def means(self) -> Means:
        return Means(
            setting=self.setting,
            forms=self.forms or (["qa"] if self.is_small else ["implications"]),
            has_templates=chosen_source(self) == "made",
            has_generator=self.generator != RoleConfig(),
            has_file=self.edits_file is not None,
            sums=self.backend == "local",
        )


class Task(NamedTuple):
    """What the settings come to."""

    source: Source
    passages: list[Passage]
    has_questions: bool
    rows: list[str]
    tokenizer: Any
    settings: InnerSettings
    prompts: dict[str, EditPrompts]
    from_file: list[list[str]]
    roles: list[Role]


def main(config: Config) -> None:
    load_dotenv()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    started = time.perf_counter()
    log_path = config.log_path or new_run_path("knowledge", about=config.setting)
    with Endpoints(device=config.device) as endpoints, contextlib.ExitStack() as stack:
        # what only the loaded models tell comes last
        with held_log():
            with as_config_errors():
                task = check(config, endpoints)
                service = connect_for_run(
                    log_path, config.backend, base_url=config.base_url, device=config.device
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
            with as_config_errors():
                counter.require_adapters()
            judge = stack.enter_context(
                open_judge(
                    config.judge_kind,
                    config.judge,
                    endpoints,
                    seed=config.seed,
                    cache_path=run.path / "judge_calls.jsonl",
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
        print(f"\n{table_texts(results)}")
        for _, kind, found in reliabilities(results):
            if kind == "logprob":
                warn_unreliable(found, kind)
        report = live.finish()
    print(f"\n{time.perf_counter() - started:.0f} s in all. Report: {shown_path(report)}")


def check(config: Config, endpoints: Endpoints) -> Task:
    """Everything that can be wrong, before a model is loaded or a file written."""
    means = config.means
    roles = []
    if means.has_generator:
        role = partial(config.generator.role, temperature=config.temperature, seed=config.seed)
        roles.append(role(GENERATOR, max_tokens=config.max_tokens))
    problems = endpoints.check(roles)
    if config.backend == "local":
        problems += problems_of(lambda: resolve_model(config.model_name))
    raise_problems(problems)
    if config.inner_rank is not None:
        check_rank(config.model_name, "inner_rank", config.inner_rank)
    rows = expanded_rows(config.rows or default_rows(means), means)
    others = config.skill_passages if SKILL in rows else 0
    try:
        source = source_of(config, num_train=others, num_test=number_of_passages(config, others))
    except ConfigError as error:
        of_skill = f"; {others} of them are for the row skill, see skill_passages" * bool(others)
        raise ConfigError(f"{error}{of_skill}") from error
    passages = source.passages("test")
    has_questions = any(passage.questions for passage in passages)
    if not has_questions:
        rows = [row for row in rows if row not in (*UNTRAINED, *NEED_QUESTIONS)]
        logger.warning(
            "no passage has a question: edits are written and trained on, nothing is measured"
        )
    if OTHER in rows:
        others_of(passages)
    from_file: list[list[str]] = []
    if config.edits_file is not None:
        from_file = read_edits(expanded(config.edits_file), passages, config.k).texts_P_K
    settings = inner_settings(
        config, source, context_length(config.model_name), choices=config.choices
    )
    prompt_form = config.edit_prompt or ("chat" if config.is_small else "raw")
    prompts = {
        form: EditPrompts(form, prompt_form=prompt_form, example_edit=source.example_edit)
        for form in means.forms
    }
    tokenizer = load_tokenizer(config.model_name)
    return Task(
        source, passages, has_questions, rows, tokenizer, settings, prompts, from_file, roles
    )


def number_of_passages(config: Config, others: int) -> int:
    """As given, or else few made ones, all of a file but `others`, at most 200."""
    if config.n_passages is not None:
        return config.n_passages
    if chosen_source(config) == "made":
        return 6 if config.setting == "single" else 12
    if chosen_source(config) == "own" and config.data_path is not None:
        path = expanded(config.data_path)
        if path.exists():
            return max(1, min(200, len(read_own(path, [])) - config.first_passage - others))
    return 200


def make_rules(config: Config, counter: InnerLoop) -> Rules:
    epochs, rate = config.passage_epochs, config.passage_learning_rate
    if config.is_small:
        epochs, rate = epochs or SMALL_PASSAGE_EPOCHS, rate or SMALL_PASSAGE_RATE
    return Rules(
        setting=config.setting,
        seeds=config.seeds,
        seed=config.seed,
        reference=config.means.reference,
        pool=config.means.pool,
        passage_rate=rate,
        passage_epochs=epochs,
        count=counter.trained_tokens,
    )


def make_writers(
    config: Config, task: Task, run: RunDir, service: ServiceClient, endpoints: Endpoints
) -> Writers:
    return Writers(
        task.source,
        WrittenFile(run.path / "edits.jsonl"),
        task.prompts,
        config.seeds,
        config.k,
        Sampling(
            *(service, config.model_name, task.tokenizer, config.max_tokens, config.temperature),
            config.seed,
            config.use_grammar and config.backend == "local",
        ),
        Calls(endpoints, task.roles, run.path / "calls.jsonl", config.max_concurrency),
        task.from_file,
    )


if __name__ == "__main__":
    config_entrypoint(main)
