"""Write labelled training data about a behavioural property.

    uv run scripts/generate.py type=scenarios property=honest
    uv run scripts/generate.py type=qa property=sycophantic contrastive=true num_subtypes=12
    uv run scripts/generate.py params_file=datasets/XXXX.params.yaml seed=1

Subtypes, then prompts for each of them, then examples for each prompt, one call each. Writes
datasets/<run_id>.params.yaml after the first two stages, which params_file= starts from, and
datasets/<run_id>.examples.yaml; config.yaml, every reply and report.html under
runs/generate/<run_id>/, or log_path. The same command with that log_path goes on where it stopped.
"""

import asyncio
import contextlib
import logging
import random
import time
from pathlib import Path
from typing import Any, NamedTuple

import chz
from dotenv import load_dotenv

from evaluation.behaviour.eval_file import load_eval_file
from generation.files import write_examples, write_params
from generation.kinds import KINDS, Kind, choose_kind
from generation.pipeline import GENERATOR, Writer
from generation.plan import (
    NUM_SUBTYPES,
    PROMPTS_PER_SUBTYPE,
    count_calls,
    plan_text,
    settings_problems,
)
from generation.properties import Property, choose_properties, known_properties
from generation.quality import VERIFIER, Example, QualityReport, sift
from generation.report import closing_tables, make_report, report_title
from utils.config.entrypoint import (
    config_entrypoint,
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
from utils.llm.runs import claimed_output, exit_unfinished, output_paths, require_whole
from utils.runs.inputs import INPUT, MUST_EXIST
from utils.runs.run_dir import RunDir, new_run_path
from utils.terminal import command

logger = logging.getLogger(__name__)

# what a run may be taken up again with
MAY_CHANGE = ("max_cost_usd", "max_concurrency", "generator.timeout", "verifier.timeout")


@chz.chz(typecheck=True)
class Config:
    type: str = chz.field(doc=f"of the examples: {', '.join(KINDS)}", metadata=WHAT)
    property: str = chz.field(doc="what the examples show; an unknown one lists the known")
    properties_file: Path | None = chz.field(
        default=None, doc="YAML with more properties", metadata=MUST_EXIST
    )
    params_file: Path | None = chz.field(
        default=None,
        doc="a .params.yaml: its settings, subtypes and prompts, but new examples",
        metadata=INPUT,
    )
    num_subtypes: int | None = chz.field(default=None, doc="kinds of situations; default: 8")
    prompts_per_subtype: int | None = chz.field(
        default=None, doc="premises for examples; default: 4"
    )
    examples_per_prompt: int = chz.field(default=1, doc="calls per premise")
    subtypes: list[str] = chz.field(default_factory=list, doc="default: the generator writes them")
    prompts: dict[str, list[str]] = chz.field(
        default_factory=dict, doc="by subtype; default: the generator writes them"
    )
    max_chars: int = chz.field(default=600, doc="of an answer or a document")
    contrastive: bool = chz.field(
        default=False, doc="with each positive example a negative one for the same input"
    )
    seed: int = chz.field(default=0, doc="of sampling and of what is held out")
    dry_run: bool = chz.field(default=False, doc="print calls and requests, and stop")

    generator: RoleConfig = chz.field(
        default_factory=RoleConfig, doc="writes everything", metadata=group("Who writes and checks")
    )
    verifier: RoleConfig | None = chz.field(
        default=None,
        doc="checks labels; default: the generator's model and how that is called",
        metadata=SECOND_ROLE,
    )
    device: str | None = chz.field(default=None, doc="of local models: cpu or cuda")
    dtype: Dtype | None = chz.field(default=None, doc="float32, bfloat16 or auto; of local models")
    max_concurrency: int = chz.field(default=8, doc="calls in flight per role, local ones apart")
    max_cost_usd: float | None = chz.field(default=None, doc="stop at this reported cost")

    verify: bool = chz.field(
        default=True,
        doc="label all examples blindly a second time, by the property's rule if any",
        metadata=group("What is kept"),
    )
    drop_unconfirmed: bool | None = chz.field(
        default=None, doc="examples whose second label differs; default: where a rule decides"
    )
    remove_duplicates: bool = chz.field(default=True, doc="exact and near ones")
    heldout_subtypes: int = chz.field(default=1, doc="subtypes that sft.py does not train on")
    eval_file: Path | None = chz.field(
        default=None, doc="a .eval.yaml; examples near its prompts are dropped", metadata=INPUT
    )

    log_path: Path | None = chz.field(
        default=None, doc="run directory; an existing one resumes", metadata=OUTPUT
    )
    output_dir: Path = chz.field(default=Path("datasets"), doc="where both files go")


class Task(NamedTuple):
    """What a run's settings come to, and where its files go."""

    kind: Kind
    property: Property
    eval_texts: list[str] | None
    roles: list[Role]
    log_path: Path
    params_path: Path
    examples_path: Path


def main(config: Config) -> None:
    load_dotenv()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    from training.endpoints import Endpoints

    started = time.perf_counter()
    with (
        Endpoints(device=config.device, dtype=config.dtype) as endpoints,
        contextlib.ExitStack() as stack,
    ):
        # what only the loaded models tell comes last
        with held_log():
            task = check(config, endpoints)
            if config.dry_run:
                print(plan_text(config, task.kind, task.property, task.roles))
                return
            stack.enter_context(
                claimed_output(task.examples_path, lambda: taken(config, task.log_path))
            )
            opened = RunDir.open(
                "generate", task.log_path, config, resume_fields_ignored=MAY_CHANGE
            )
            run = stack.enter_context(opened)
            stack.enter_context(exit_unfinished(run.path))
            describe_roles(*task.roles)
            endpoints.require_models(run, {f"{role.name}.model": role for role in task.roles})
            opened_roles = endpoints.open(task.roles)
        total = sum(count for _, count in count_calls(config, task.roles))
        calls = LiveCalls(run, report_title(task.kind, config.property), total)
        with calls:
            client = LLMClient(
                opened_roles,
                cache_path=run.path / "calls.jsonl",
                max_concurrency=config.max_concurrency,
                max_cost_usd=config.max_cost_usd,
                watcher=calls,
            )
            asyncio.run(generate(config, task, client, run, calls))
    print(
        f"\n{time.perf_counter() - started:.0f} s in all\nSettings, subtypes and prompts: "
        f"{task.params_path}\nExamples: {task.examples_path}\nReport: {run.path / 'report.html'}\n"
        f"\nLearn from them:  {command('sft', examples_file=task.examples_path)}"
    )


def check(config: Config, endpoints: Any) -> Task:
    """Everything that can be wrong, told together, before a model is loaded or called."""
    found: list[Property] = []
    eval_texts: list[str] = []

    def read_property() -> None:
        known = known_properties(config.properties_file)
        found.extend(choose_properties([config.property], known))

    def read_eval_file() -> None:
        if config.eval_file is not None:
            for prompt in load_eval_file(config.eval_file).prompts:
                eval_texts.extend(prompt.messages)

    problems = problems_of(lambda: choose_kind(config.type), read_property, read_eval_file)
    roles = [config.generator.role(GENERATOR, temperature=0.9, max_tokens=1500, seed=config.seed)]
    by_rule = bool(found) and found[0].rule is not None
    if config.verify and not by_rule:
        verifier = second_role(config.verifier, config.generator)
        roles.append(verifier.role(VERIFIER, temperature=0.0, max_tokens=400, seed=config.seed))
    about = f"{config.type}-{config.property}"
    log_path = config.log_path or new_run_path("generate", about=about)
    params_path, examples_path, in_use = output_paths(
        config.output_dir, log_path, "params", "examples"
    )
    raise_problems([*settings_problems(config), *problems, *in_use, *endpoints.check(roles)])
    if by_rule and config.verifier is not None:
        logger.warning("verifier: not used, since a rule decides about %s", config.property)
    kind, texts = choose_kind(config.type), eval_texts if config.eval_file else None
    return Task(kind, found[0], texts, roles, log_path, params_path, examples_path)


def taken(config: Config, log_path: Path) -> list[str]:
    """What is wrong with where the run's files would go."""
    return output_paths(config.output_dir, log_path, "params", "examples")[2]


async def generate(
    config: Config, task: Task, client: LLMClient, run: RunDir, calls: LiveCalls
) -> None:
    local = task.roles[0].base_url is None
    writer = Writer(client, task.kind, task.property, local=local, seed=config.seed)
    async with client:
        prompts = dict(config.prompts)
        if not prompts:
            subtypes = config.subtypes or await writer.subtypes(config.num_subtypes or NUM_SUBTYPES)
            prompts, failed = await writer.prompts(
                subtypes, config.prompts_per_subtype or PROMPTS_PER_SUBTYPE
            )
            require_whole(client)
            if failed:
                logger.warning("no prompts for %d of %d subtypes", failed, len(subtypes))
        if not prompts:
            raise LLMError("empty", GENERATOR, "no subtype has prompts; see the failures above")
        # fewer where subtypes failed
        num_heldout = min(config.heldout_subtypes, len(prompts) - 1)
        write_params(config, prompts, num_heldout, task.params_path)
        written, num_failed = await writer.examples(
            prompts,
            per_prompt=config.examples_per_prompt,
            contrastive=config.contrastive,
            max_chars=config.max_chars,
        )
        require_whole(client)
        rng = random.Random(f"{config.seed} held out")
        examples, quality = await sift(
            written,
            task.kind,
            task.property,
            client,
            heldout_subtypes=rng.sample(list(prompts), num_heldout),
            check_labels=config.verify,
            drop_unconfirmed=config.drop_unconfirmed,
            drop_repeats=config.remove_duplicates,
            eval_texts=task.eval_texts,
        )
        require_whole(client)
    quality.calls_failed = num_failed
    write_results(config, task, examples, list(prompts), quality, run, calls)


def write_results(
    config: Config,
    task: Task,
    examples: list[Example],
    subtypes: list[str],
    quality: QualityReport,
    run: RunDir,
    calls: LiveCalls,
) -> None:
    ledger = calls.ledger
    report_path = calls.finish(
        make_report(
            run.run_id,
            kind=task.kind,
            examples=examples,
            subtypes=subtypes,
            quality=quality,
            ledger=ledger,
            settings=to_plain(config),
        )
    )
    run.log_metrics(0, quality.headline_numbers())
    print(closing_tables(quality, ledger))
    if not examples:
        raise LLMError("empty", GENERATOR, f"no example is left; {report_path} says why")
    write_examples(config, examples, quality, run.run_id, ledger, task.examples_path)


if __name__ == "__main__":
    config_entrypoint(main, layers=("config_file", "params_file"))
