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
import logging
import random
import time
from pathlib import Path
from typing import Any

import chz
from dotenv import load_dotenv

from generation.kinds import KINDS, choose_kind, example_request, subtypes_request
from generation.pipeline import GENERATOR, Writer
from generation.quality import VERIFIER, Example, QualityReport, sift, to_record
from generation.report import DIVERSITY_HEADERS, diversity_rows, quality_rows, write_report
from utils.config import (
    ConfigError,
    config_entrypoint,
    dump_yaml,
    problems_of,
    raise_problems,
    to_plain,
)
from utils.llm import LLMClient
from utils.llm_api import LLMError, Role
from utils.llm_roles import RoleConfig, describe_roles
from utils.llm_runs import exit_unfinished, ledger_text, require_whole
from utils.properties import Property, choose_properties, known_properties
from utils.runs import RunDir, new_run_path, run_meta
from utils.tables import text_table

logger = logging.getLogger(__name__)


@chz.chz(typecheck=True)
class Config:
    type: str = chz.field(doc=f"of the examples: {', '.join(KINDS)}")
    property: str = chz.field(doc="what the examples show; an unknown one lists the known")
    properties_file: Path | None = chz.field(
        default=None, doc="YAML with more properties", metadata={"must_exist": True}
    )
    params_file: Path | None = chz.field(
        default=None, doc="a .params.yaml: its settings, subtypes and prompts, but new examples"
    )
    log_path: Path | None = chz.field(default=None, doc="run directory; an existing one resumes")
    output_dir: Path = chz.field(default=Path("datasets"), doc="where both files go")
    seed: int = chz.field(default=0, doc="of sampling and of what is held out")

    generator: RoleConfig = chz.field(default_factory=RoleConfig, doc="writes everything")
    verifier: RoleConfig | None = chz.field(
        default=None, doc="checks labels; default: the generator's model"
    )
    device: str | None = chz.field(default=None, doc="of local models: cpu or cuda")
    max_concurrency: int = chz.field(default=8, doc="calls in flight per role, local ones apart")
    max_cost_usd: float | None = chz.field(default=None, doc="stop at this reported cost")

    num_subtypes: int = chz.field(default=8, doc="kinds of situations")
    prompts_per_subtype: int = chz.field(default=4, doc="premises for examples")
    examples_per_prompt: int = chz.field(default=1, doc="calls per premise")
    subtypes: list[str] = chz.field(default_factory=list, doc="default: the generator writes them")
    prompts: dict[str, list[str]] = chz.field(
        default_factory=dict, doc="by subtype; default: the generator writes them"
    )
    max_chars: int = chz.field(default=600, doc="of an answer or a document")

    contrastive: bool = chz.field(
        default=False, doc="with each positive example a negative one for the same input"
    )
    verify: bool = chz.field(
        default=True, doc="label all examples blindly a second time, by the property's rule if any"
    )
    drop_unconfirmed: bool | None = chz.field(
        default=None, doc="examples whose second label differs; default: where a rule decides"
    )
    remove_duplicates: bool = chz.field(default=True, doc="exact and near ones")
    heldout_subtypes: int = chz.field(default=1, doc="subtypes that sft.py does not train on")
    eval_file: Path | None = chz.field(
        default=None, doc="a .eval.yaml; examples near its prompts are dropped"
    )
    dry_run: bool = chz.field(default=False, doc="print calls and first requests, and stop")

    @chz.validate
    def _check(self) -> None:
        problems = []
        for name in ("num_subtypes", "prompts_per_subtype", "examples_per_prompt", "max_chars"):
            if getattr(self, name) < 1:
                problems.append(f"{name}={getattr(self, name)}: at least 1 is needed")
        count = len(self.prompts) or len(self.subtypes) or self.num_subtypes
        if not 0 <= self.heldout_subtypes < max(count, 1):
            problems.append(
                f"heldout_subtypes={self.heldout_subtypes}: of {count} subtypes, at least one has "
                f"to stay for training; allowed are 0 to {count - 1}"
            )
        empty = [subtype for subtype, prompts in self.prompts.items() if not prompts]
        if empty:
            problems.append(f"prompts: none for {empty}; give each subtype at least one")
        unknown = sorted(set(self.prompts) - set(self.subtypes)) if self.subtypes else []
        if unknown:
            problems.append(f"prompts names {unknown}, which are not in subtypes={self.subtypes}")
        raise_problems(problems)


def main(config: Config) -> None:
    load_dotenv()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    from training.endpoints import Endpoints

    started = time.perf_counter()
    generator = config.generator.role(GENERATOR, temperature=0.9, max_tokens=1500, seed=config.seed)
    verifier = (config.verifier or config.generator).role(
        VERIFIER, temperature=0.0, max_tokens=400, seed=config.seed
    )
    with Endpoints(device=config.device) as endpoints:
        property, eval_texts, roles = check(config, endpoints, generator, verifier)
        if config.dry_run:
            print(plan(config, property, roles))
            return
        log_path = config.log_path or new_run_path(
            "generate", about=f"{config.type}-{config.property}"
        )
        params_path, examples_path = (
            config.output_dir / f"{log_path.name}.{what}.yaml" for what in ("params", "examples")
        )
        require_unfinished(log_path, params_path, examples_path)
        run = RunDir.open(
            "generate", log_path, config, resume_fields_ignored=("max_cost_usd", "max_concurrency")
        )
        describe_roles(*roles)
        with run, exit_unfinished(run.path):
            client = LLMClient(
                endpoints.open(roles),
                cache_path=run.path / "calls.jsonl",
                max_concurrency=config.max_concurrency,
                max_cost_usd=config.max_cost_usd,
            )
            asyncio.run(
                generate(config, property, eval_texts, client, run, params_path, examples_path)
            )
    print(
        f"\n{time.perf_counter() - started:.0f} s in all\nSettings, subtypes and prompts: "
        f"{params_path}\nExamples: {examples_path}\nReport: {run.path / 'report.html'}\n\n"
        f"Learn from them:  uv run scripts/sft.py examples_file={examples_path}"
    )


def check(
    config: Config, endpoints: Any, generator: Role, verifier: Role
) -> tuple[Property, list[str] | None, list[Role]]:
    """Everything that can be wrong, told together, before a model is loaded or called."""
    found: list[Property] = []
    texts: list[str] = []

    def read_property() -> None:
        known = known_properties(config.properties_file)
        found.extend(choose_properties([config.property], known))

    def read_eval_file() -> None:
        from evaluation.eval_file import load_eval_file

        if config.eval_file is not None:
            prompts = load_eval_file(config.eval_file).prompts
            texts.extend(message for prompt in prompts for message in prompt.messages)

    problems = problems_of(lambda: choose_kind(config.type), read_property, read_eval_file)
    by_rule = bool(found) and found[0].rule is not None
    roles = [generator] if by_rule or not config.verify else [generator, verifier]
    raise_problems(problems + endpoints.check(roles))
    if by_rule and config.verifier is not None:
        logger.warning("verifier: not used, since a rule decides about %s", config.property)
    return found[0], None if config.eval_file is None else texts, roles


def require_unfinished(log_path: Path, params_path: Path, examples_path: Path) -> None:
    if examples_path.exists():
        raise ConfigError(
            f"{examples_path} exists: that run is finished; start a new one without log_path"
        )
    if params_path.exists() and not (log_path / "config.yaml").exists():
        raise ConfigError(f"{params_path} exists and is another run's; name another log_path")


async def generate(
    config: Config,
    property: Property,
    eval_texts: list[str] | None,
    client: LLMClient,
    run: RunDir,
    params_path: Path,
    examples_path: Path,
) -> None:
    kind = choose_kind(config.type)
    local = config.generator.role(GENERATOR, temperature=1.0, max_tokens=1, seed=0).base_url is None
    writer = Writer(client, kind, property, local=local, seed=config.seed)
    async with client:
        prompts = dict(config.prompts)
        if not prompts:
            subtypes = config.subtypes or await writer.subtypes(config.num_subtypes)
            prompts, failed = await writer.prompts(subtypes, config.prompts_per_subtype)
            require_whole(client)
            if failed:
                logger.warning("no prompts for %d of %d subtypes", failed, len(subtypes))
        if not prompts:
            raise LLMError("empty", GENERATOR, "no subtype has prompts; see the failures above")
        settings = to_plain(config) | {"subtypes": list(prompts), "prompts": prompts}
        dump_yaml(params_path, settings | {"meta": run_meta()})

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
            kind,
            property,
            client,
            heldout_subtypes=rng.sample(
                list(prompts), min(config.heldout_subtypes, len(prompts) - 1)
            ),
            check_labels=config.verify,
            drop_unconfirmed=config.drop_unconfirmed,
            drop_repeats=config.remove_duplicates,
            eval_texts=eval_texts,
        )
        require_whole(client)
    quality.calls_failed = num_failed
    write_results(config, examples, list(prompts), quality, client, run, examples_path)


def write_results(
    config: Config,
    examples: list[Example],
    subtypes: list[str],
    quality: QualityReport,
    client: LLMClient,
    run: RunDir,
    examples_path: Path,
) -> None:
    kind, ledger = choose_kind(config.type), client.ledger
    report_path = run.path / "report.html"
    write_report(
        report_path,
        run.run_id,
        kind=kind,
        examples=examples,
        subtypes=subtypes,
        quality=quality,
        ledger=ledger,
        settings=to_plain(config),
    )
    print(text_table(("", "examples"), quality_rows(quality)), end="\n\n")
    if quality.diversity:
        print(text_table(DIVERSITY_HEADERS, diversity_rows(quality)), end="\n\n")
    print(ledger_text(ledger))
    if not examples:
        raise LLMError("empty", GENERATOR, f"no example is left; {report_path} says why")
    records = [to_record(example, kind) for example in examples]
    dump_yaml(
        examples_path,
        {
            "property": config.property,
            "type": config.type,
            "examples": records,
            "quality": quality.to_plain(),
            "meta": run_meta() | {"run_id": run.run_id, "calls": ledger.to_plain()},
        },
    )


def plan(config: Config, property: Property, roles: list[Role]) -> str:
    """What would be asked, of whom and how often."""
    kind = choose_kind(config.type)
    subtypes = len(config.prompts) or len(config.subtypes) or config.num_subtypes
    prompts = sum(map(len, config.prompts.values())) or subtypes * config.prompts_per_subtype
    examples = prompts * config.examples_per_prompt
    verified = examples * (1 + config.contrastive) if VERIFIER in [r.name for r in roles] else 0
    rows = [
        ("subtypes", 0 if config.subtypes or config.prompts else 1),
        ("prompts", 0 if config.prompts else subtypes),
        ("examples", examples),
        ("verify", verified),
    ]
    first = subtypes_request(kind, property, config.num_subtypes, [])[0]["content"]
    example = example_request(
        kind, property, "{prompt}", contrastive=config.contrastive, max_chars=config.max_chars
    )[0]["content"]
    who = "\n".join(f"{r.name}: {r.model}, {r.base_url or 'in this process'}" for r in roles)
    calls = text_table(("stage", "calls, at least"), rows)
    return f"{who}\n\n{calls}\n\nFirst request:\n\n{first}\n\nFor an example:\n\n{example}"


if __name__ == "__main__":
    config_entrypoint(main, layers=("config_file", "params_file"))
