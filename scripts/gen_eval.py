"""Write the prompts of an eval: users' messages in which behavioural properties can show.

    uv run scripts/gen_eval.py 'properties=["power-seeking","sycophantic"]'
    uv run scripts/gen_eval.py 'properties=["shutdown-resistant"]' \\
        'num_turns={"shutdown-resistant": 2}'
    uv run scripts/gen_eval.py params_file=evals/XXXX.eval-params.yaml seed=1
    uv run scripts/gen_eval.py params_file=evals/XXXX.eval-params.yaml 'properties=["sycophantic"]'

Categories of situations for each property, then prompts for each of them, one call each, then two
scores: how realistic a prompt is, and how much it looks like a test. Writes
evals/<run_id>.eval-params.yaml after the first stage, which params_file= starts from (with all of
its properties, or with those that properties= names), and evals/<run_id>.eval.yaml; config.yaml,
every reply and report.html under runs/gen_eval/<run_id>/, or log_path. The same command with that
log_path goes on where it stopped.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import chz
from dotenv import load_dotenv

from evaluation.behaviour.eval_file import EvalPrompt
from evaluation.behaviour.prompt_plan import (
    NUM_CATEGORIES,
    chosen,
    count_calls,
    filters,
    narrowed,
    plan_text,
    settings_problems,
    unwritten,
)
from evaluation.behaviour.prompt_report import (
    COUNT_HEADERS,
    count_rows,
    dropped_rows,
    make_report,
    report_title,
)
from evaluation.behaviour.prompts import (
    GENERATOR,
    SCORER,
    Dropped,
    PromptWriter,
    filter_prompts,
    score_prompts,
)
from generation.properties import Property
from utils.config.entrypoint import (
    config_entrypoint,
    dump_yaml,
    held_log,
    problems_of,
    raise_problems,
    to_plain,
)
from utils.config.help import OUTPUT, WHAT, group
from utils.devices import Dtype
from utils.llm.api import LLMError, Role
from utils.llm.client import LLMClient
from utils.llm.live_calls import LiveCalls
from utils.llm.roles import SECOND_ROLE, RoleConfig, describe_roles, second_role
from utils.llm.runs import claimed_output, exit_unfinished, ledger_text, output_paths
from utils.runs.inputs import INPUT, MUST_EXIST
from utils.runs.provenance import run_meta
from utils.runs.run_dir import RunDir, new_run_path
from utils.runs.tables import text_table
from utils.terminal import command

logger = logging.getLogger(__name__)
# what a run may be taken up again with
MAY_CHANGE = ("max_cost_usd", "max_concurrency", "generator.timeout", "scorer.timeout")


@chz.chz(typecheck=True)
class Config:
    properties: list[str] = chz.field(
        doc="what the prompts are about; unknown ones list the known", metadata=WHAT
    )
    properties_file: Path | None = chz.field(
        default=None, doc="YAML with more properties", metadata=MUST_EXIST
    )
    params_file: Path | None = chz.field(
        default=None,
        doc="an .eval-params.yaml: its settings and categories, but new prompts",
        metadata=INPUT,
    )
    num_turns: dict[str, int] = chz.field(
        default_factory=dict, doc="user messages per prompt, by property; default: 1"
    )
    num_categories: int | None = chz.field(
        default=None,
        doc="per property, where none are given: the clusters of the statistics; "
        f"default: {NUM_CATEGORIES}",
    )
    prompts_per_category: int = chz.field(default=3, doc="calls per category")
    categories: dict[str, list[str]] = chz.field(
        default_factory=dict, doc="by property; default: the generator writes them"
    )
    examples_file: Path | None = chz.field(
        default=None,
        doc="an .examples.yaml; prompts near its inputs are written anew",
        metadata=INPUT,
    )
    seed: int = chz.field(default=0, doc="of sampling")
    dry_run: bool = chz.field(default=False, doc="print calls and first requests, and stop")

    generator: RoleConfig = chz.field(
        default_factory=RoleConfig, doc="writes everything", metadata=group("Who writes and scores")
    )
    scorer: RoleConfig | None = chz.field(
        default=None,
        doc="scores realism; default: the generator's model and how that is called",
        metadata=SECOND_ROLE,
    )
    device: str | None = chz.field(default=None, doc="of local models: cpu or cuda")
    dtype: Dtype | None = chz.field(default=None, doc="of local models: float32, bfloat16 or auto")
    max_concurrency: int = chz.field(default=8, doc="calls in flight per role, local ones apart")
    max_cost_usd: float | None = chz.field(default=None, doc="stop at this reported cost")

    score_realism: bool = chz.field(
        default=True, doc="score realism and eval-awareness", metadata=group("What is kept")
    )
    min_realism: float = chz.field(default=0, doc="of 1 to 10; prompts below are dropped")
    max_eval_awareness: float = chz.field(
        default=10, doc="of 1 to 10; prompts above are dropped, and with either those without score"
    )

    log_path: Path | None = chz.field(
        default=None, doc="run directory; an existing one resumes", metadata=OUTPUT
    )
    output_dir: Path = chz.field(default=Path("evals"), doc="where both files go")


class Task(NamedTuple):
    """What a run's settings come to, and where its files go."""

    properties: list[Property]
    training_inputs: list[str]
    roles: list[Role]
    log_path: Path
    params_path: Path
    eval_path: Path


def main(config: Config) -> None:
    load_dotenv()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    from training.endpoints import Endpoints

    config = narrowed(config)
    started = time.perf_counter()
    with (
        Endpoints(device=config.device, dtype=config.dtype) as endpoints,
        contextlib.ExitStack() as stack,
    ):
        # what only the loaded models tell comes last
        with held_log():
            task = check(config, endpoints)
            if config.dry_run:
                print(plan_text(config, task.properties, task.roles))
                return
            stack.enter_context(
                claimed_output(task.eval_path, lambda: taken(config, task.log_path))
            )
            opened = RunDir.open(
                "gen_eval", task.log_path, config, resume_fields_ignored=MAY_CHANGE
            )
            run = stack.enter_context(opened)
            stack.enter_context(exit_unfinished(run.path))
            describe_roles(*task.roles)
            endpoints.require_models(run, {f"{role.name}.model": role for role in task.roles})
            opened_roles = endpoints.open(task.roles)
        total = sum(count for _, count in count_calls(config, task.properties))
        calls = LiveCalls(run, report_title(task.properties), total)
        with calls:
            client = LLMClient(
                opened_roles,
                cache_path=run.path / "calls.jsonl",
                max_concurrency=config.max_concurrency,
                max_cost_usd=config.max_cost_usd,
                watcher=calls,
            )
            try:
                prompts, dropped = asyncio.run(write_prompts(config, task, client))
            finally:
                print(ledger_text(calls.ledger), end="\n\n")
            write_results(task, prompts, dropped, run, calls)
    print(
        f"\n{time.perf_counter() - started:.0f} s in all\n"
        f"Settings and categories: {task.params_path}\n"
        f"Prompts: {task.eval_path}\nReport: {run.path / 'report.html'}\n\n"
        "Judge a checkpoint on them:  "
        f"{command('eval', eval_file=task.eval_path, checkpoint_paths=['path/to/state'])}"
    )


def check(config: Config, endpoints: Any) -> Task:
    """Everything that can be wrong, told together, before a model is loaded or called."""
    inputs: list[str] = []

    def read_examples() -> None:
        if config.examples_file is not None:
            from training.examples import load_examples

            for example in load_examples(config.examples_file, ["positive", "negative"]):
                said = [m["content"] for m in example.messages if m["role"] == "user"]
                inputs.extend(said or [example.text])

    problems = [*settings_problems(config), *problems_of(read_examples)]
    roles = [config.generator.role(GENERATOR, temperature=0.9, max_tokens=1500, seed=config.seed)]
    if config.score_realism:
        scorer = second_role(config.scorer, config.generator)
        roles.append(scorer.role(SCORER, temperature=0.0, max_tokens=400, seed=config.seed))
    names = config.properties
    about = names[0] if len(names) == 1 else f"{len(names)}-properties"
    log_path = config.log_path or new_run_path("gen_eval", about=about)
    params_path, eval_path, in_use = output_paths(
        config.output_dir, log_path, "eval-params", "eval"
    )
    raise_problems([*problems, *in_use, *endpoints.check(roles)])
    return Task(chosen(config), inputs, roles, log_path, params_path, eval_path)


def taken(config: Config, log_path: Path) -> list[str]:
    """What is wrong with where the run's files would go."""
    return output_paths(config.output_dir, log_path, "eval-params", "eval")[2]


async def write_prompts(
    config: Config, task: Task, client: LLMClient
) -> tuple[list[EvalPrompt], Dropped]:
    writer = PromptWriter(client, local=task.roles[0].base_url is None, seed=config.seed)
    async with client:
        wanted = [p for p in task.properties if p.name in unwritten(config)]
        written = await writer.categories(wanted, config.num_categories or NUM_CATEGORIES)
        categories = config.categories | written
        write_params(config, categories, task.params_path)
        prompts, dropped = await writer.prompts(
            task.properties,
            categories,
            per_category=config.prompts_per_category,
            num_turns=config.num_turns,
            leaks_from=task.training_inputs,
        )
        if config.score_realism:
            prompts, dropped.unscored = await score_prompts(prompts, client)
    if filters(config):
        prompts = filter_prompts(
            prompts,
            dropped,
            min_realism=config.min_realism,
            max_eval_awareness=config.max_eval_awareness,
        )
    return prompts, dropped


def write_params(config: Config, categories: dict[str, list[str]], path: Path) -> None:
    """All settings but those that belong to this one run: its directory, and where it began."""
    settings = to_plain(config) | {"params_file": None, "log_path": None, "categories": categories}
    dump_yaml(path, settings | {"meta": run_meta()})


def write_results(
    task: Task, prompts: list[EvalPrompt], dropped: Dropped, run: RunDir, calls: LiveCalls
) -> None:
    ledger = calls.ledger
    report_path = calls.finish(make_report(run.run_id, task.properties, prompts, dropped, ledger))
    counts = Counter(f"prompts/{prompt.property}" for prompt in prompts)
    run.log_metrics(0, {"prompts": len(prompts), **counts})
    print(text_table(COUNT_HEADERS, count_rows(prompts)))
    print(f"\n{text_table(('', 'prompts'), dropped_rows(dropped))}")
    if not prompts:
        raise LLMError("empty", GENERATOR, f"no prompt is left; {report_path} says why")
    for property in task.properties:
        if property.name not in {prompt.property for prompt in prompts}:
            logger.warning("no prompt is left for %s; %s says why", property.name, report_path)
    dump_yaml(
        task.eval_path,
        {
            "properties": {p.name: p.to_plain() for p in task.properties},
            "prompts": [prompt.to_plain() for prompt in prompts],
            "meta": run_meta()
            | {"run_id": run.run_id, "dropped": to_plain(dropped)}
            | {"calls": ledger.to_plain()},
        },
    )


if __name__ == "__main__":
    config_entrypoint(main, layers=("config_file", "params_file"))
