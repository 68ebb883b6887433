"""What scripts/eval.py is told and will do, with everything checked before the first call."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import chz

from evaluation.behaviour.agreement import Label
from evaluation.behaviour.eval_file import EvalFile, load_eval_file
from evaluation.behaviour.results import StoredAnswers, load_answers, load_labels
from evaluation.behaviour.targets import (
    BASE,
    Target,
    checkpoint_labels,
    checkpoint_problems,
    is_served,
    make_targets,
)
from training.checkpoint_folders import checkpoint_folder
from training.connect import (
    SAMPLER_DOC,
    SAMPLER_OPTIONS_DOC,
    SAMPLING_WEIGHTS_DOC,
    Sampler,
    SamplerOptions,
    SamplingWeights,
    temperature_problems,
)
from training.endpoints import Endpoints
from utils.config.entrypoint import problems_of, raise_problems
from utils.config.help import EVALUATION, OUTPUT, SAMPLING, WHAT, group, nested_docs
from utils.config.ranges import range_problems
from utils.devices import DTYPE_DOC, Dtype
from utils.llm.api import Role
from utils.llm.roles import OPENROUTER_MODEL, RoleConfig
from utils.runs.inputs import INPUT
from utils.runs.run_dir import new_run_path

logger = logging.getLogger(__name__)

JUDGE_TOKENS = 2000


@chz.chz(typecheck=True)
class Config:
    eval_file: Path | None = chz.field(
        default=None, doc="a .eval.yaml of scripts/gen_eval.py", metadata=INPUT | WHAT
    )
    responses_file: Path | None = chz.field(
        default=None,
        doc="instead: judge the answers in an .eval-results.yaml again",
        metadata=INPUT,
    )
    properties: list[str] = chz.field(default_factory=list, doc="default: all of the file")
    seed: int = chz.field(default=0, doc="of the answers and of the order of judging")
    dry_run: bool = chz.field(default=False, doc="print the number of calls, and stop")

    model_name: str = chz.field(
        default="embedded",
        doc="embedded, a folder or a hub id",
        metadata=group("Models under test"),
    )
    checkpoint_paths: list[str] = chz.field(
        default_factory=list,
        doc="adapters on that model, each compared with it; of a run's folder, the last checkpoint",
        metadata=INPUT,
    )
    target: RoleConfig = chz.field(
        default_factory=RoleConfig,
        doc="base_url and model of a served model, instead of these",
        metadata=nested_docs(
            model=f"what its server calls it; without it openrouter gives {OPENROUTER_MODEL}",
            base_url="openrouter, or the URL of an OpenAI-compatible server; left out, it is "
            "model_name that answers, in this process",
        ),
    )
    template: Literal["auto", "role_colon"] = chz.field(
        default="auto", doc="the model's own chat template, or the plain form for base models"
    )
    device: str | None = chz.field(
        default=None, doc="cpu or cuda; default: cuda where there is one"
    )
    dtype: Dtype | None = chz.field(default=None, doc=DTYPE_DOC)
    sampler: Sampler = chz.field(default="local", doc=SAMPLER_DOC)
    sampler_options: SamplerOptions = chz.field(default_factory=dict, doc=SAMPLER_OPTIONS_DOC)
    sampling_weights: SamplingWeights | None = chz.field(default=None, doc=SAMPLING_WEIGHTS_DOC)

    num_samples: int = chz.field(default=1, doc="answers to each prompt", metadata=SAMPLING)
    max_tokens: int = chz.field(default=512, doc="of an answer; longer ones are judged as cut off")
    temperature: float = chz.field(default=0.7, doc="of the answers; 0: always the likeliest token")
    max_cost_usd: float | None = chz.field(default=None, doc="stop calling at this reported cost")
    max_concurrency: int = chz.field(default=8, doc="calls of a role at the same time")

    judge: RoleConfig = chz.field(
        default_factory=RoleConfig, doc="who reads the conversations", metadata=EVALUATION
    )
    judge_kind: Literal["llm", "rule"] = chz.field(
        default="llm", doc="rule: the properties' own rules decide, without a judge's model"
    )
    judge_properties: Literal["all", "own"] = chz.field(
        default="all", doc="own: only the one that the prompt was written for"
    )
    judge_repeats: int = chz.field(
        default=1, doc="judgments of each conversation; above 1 at temperature 1"
    )
    second_judge: RoleConfig = chz.field(
        default_factory=RoleConfig,
        doc="with a model: judges too, for the agreement",
        metadata=nested_docs(model="who judges too; left out, nobody"),
    )
    labels_file: Path | None = chz.field(default=None, doc="YAML of people's verdicts")
    max_unscored: float = chz.field(default=0.2, doc="share of the judgments that may be missing")

    log_path: Path | None = chz.field(
        default=None, doc="run directory; an existing one resumes", metadata=OUTPUT
    )
    output_dir: Path = chz.field(default=Path("eval_results"), doc="where the results go")


@dataclass(frozen=True)
class Plan:
    """Everything that the run needs, checked. Where `source` has answers, there are no targets;
    `config` names the checkpoints themselves where the user named runs."""

    config: Config
    source: StoredAnswers
    models: list[str]
    targets: list[Target]
    judges: list[Role]
    labels: list[Label]
    log_path: Path
    results: Path


def make_plan(config: Config) -> Plan:
    """Raises a ConfigError with everything that is wrong."""
    problems = settings_problems(config)
    checkpoints: list[str] = []
    unfinished = [
        f"checkpoint_paths: {problem}"
        for path in config.checkpoint_paths
        for problem in problems_of(lambda path=path: checkpoints.append(checkpoint_folder(path)))
    ]
    if not unfinished:
        config = chz.replace(config, checkpoint_paths=checkpoints)
    sources: list[StoredAnswers] = []
    labels: list[Label] = []
    problems += problems_of(lambda: sources.append(read_source(config)))
    if sources:
        problems += rule_problems(config, sources[0].eval_file)
        problems += problems_of(lambda: labels.extend(read_labels(config, sources[0])))
    judges = judge_roles(config)
    targets: list[Target] = []
    if config.responses_file is None:
        wrong = unfinished or checkpoint_problems(config.checkpoint_paths, config.model_name)
        problems += wrong
        targets = make_targets(
            config.target,
            config.model_name,
            [] if wrong else config.checkpoint_paths,
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            seed=config.seed,
        )
    with Endpoints(
        device=config.device,
        dtype=config.dtype,
        sampler=config.sampler,
        sampler_options=config.sampler_options,
        sampling_weights=config.sampling_weights,
    ) as endpoints:
        # the checkpoints' own models are the base model
        for role in [*(target.role for target in targets[:1]), *judges]:
            problems += endpoints.check([role])
    if len({(role.model, role.base_url) for role in judges}) < len(judges):
        problems.append(
            f"second_judge.model={judges[1].model}: is the judge's own; judge_repeats=3 says how "
            "far it agrees with itself"
        )
    called = {(target.role.model, target.role.base_url) for target in targets}
    for role in judges:
        if (role.model, role.base_url) in called:
            logger.warning("%s: %s is itself under test", role.name, role.model)
    log_path = config.log_path or new_run_path("eval")
    results = config.output_dir / f"{log_path.resolve().name}.eval-results.yaml"
    problems += results_problems(results, log_path)
    raise_problems(list(dict.fromkeys(problems)))
    [source] = sources
    models = model_labels(config, source)
    return Plan(config, source, models, targets, judges, labels, log_path, results)


def results_problems(results: Path, log_path: Path) -> list[str]:
    """Whether the results would overwrite another run's."""
    if results.exists() and not (log_path / "config.yaml").is_file():
        return [f"{results} exists; name another log_path, or move it away"]
    return []


def count_calls(config: Config, plan: Plan) -> list[tuple[str, int]]:
    """Conversations, and calls of each role, without those that have to be repeated."""
    prompts, stored = plan.source.eval_file.prompts, plan.source.conversations
    per_prompt = len(plan.targets) * config.num_samples
    num_conversations = len(stored) or per_prompt * len(prompts)
    counts = [
        ("prompts", len(prompts)),
        ("models", len(plan.models)),
        ("conversations", num_conversations),
        ("target calls", per_prompt * sum(len(prompt.messages) for prompt in prompts)),
    ]
    repeats = {"judge": config.judge_repeats, "second_judge": 1}
    counts += [(f"{r.name} calls", num_conversations * repeats[r.name]) for r in plan.judges]
    return counts


def settings_problems(config: Config) -> list[str]:
    """Numbers out of range, and settings that do not go together."""
    counts = ("num_samples", "max_tokens", "judge_repeats", "max_concurrency")
    problems = range_problems(config, at_least_1=counts, at_least_0=("seed",))
    if not 0 <= config.temperature <= 2:
        problems.append(f"temperature={config.temperature}: from 0 to 2 is needed")
    problems += temperature_problems(config.sampler, temperature=config.temperature)
    if not 0 <= config.max_unscored <= 1:
        problems.append(f"max_unscored={config.max_unscored}: a share from 0 to 1 is needed")
    if config.max_cost_usd is not None and not 0 < config.max_cost_usd < math.inf:
        problems.append(f"max_cost_usd={config.max_cost_usd}: a number above 0 is needed, or None")
    if (config.eval_file is None) is (config.responses_file is None):
        problems.append("give either eval_file=... or responses_file=...")
    if config.checkpoint_paths and is_served(config.target):
        problems.append("checkpoint_paths: a served target cannot load them; leave one of them out")
    if config.responses_file and (config.checkpoint_paths or is_served(config.target)):
        problems.append("responses_file: its answers are there already; no target is called")
    if config.target.model is not None and not is_served(config.target):
        problems.append("target.model: give target.base_url too, or use model_name=...")
    if config.second_judge.model is None and config.second_judge.base_url is not None:
        problems.append("second_judge.base_url is given without second_judge.model")
    if config.judge_kind == "rule":
        if config.judge_repeats > 1:
            problems.append(f"judge_repeats={config.judge_repeats}: a rule always says the same")
        if config.judge != RoleConfig():
            problems.append("judge: judge_kind=rule asks no model; leave judge.... out")
    return problems


def read_source(config: Config) -> StoredAnswers:
    """The prompts, with the answers there are: those of responses_file, or none."""
    path = config.responses_file or config.eval_file
    if path is None:
        # settings_problems() says so
        return StoredAnswers(EvalFile({}, []), [], [])
    if path == config.responses_file:
        return load_answers(path).only(config.properties, str(path))
    return StoredAnswers(load_eval_file(path).only(config.properties, str(path)), [], [])


def model_labels(config: Config, source: StoredAnswers) -> list[str]:
    """The names of the models, the base model's first."""
    return source.labels or [BASE, *checkpoint_labels(config.checkpoint_paths)]


def rule_problems(config: Config, eval_file: EvalFile) -> list[str]:
    if config.judge_kind != "rule":
        return []
    return [
        f"judge_kind=rule: property {name!r} has no rule; leave it out with properties=[...], "
        "or use judge_kind=llm"
        for name, property in eval_file.properties.items()
        if property.rule is None
    ]


def read_labels(config: Config, source: StoredAnswers) -> list[Label]:
    if config.labels_file is None:
        return []
    samples = [conversation.sample + 1 for conversation in source.conversations]
    num_samples = max(samples, default=config.num_samples)
    models = model_labels(config, source)
    return load_labels(config.labels_file, source.eval_file, models, num_samples)


def judge_roles(config: Config) -> list[Role]:
    """The models that judge, the first judge's before the second's."""
    options: dict[str, Any] = {"max_tokens": JUDGE_TOKENS, "seed": config.seed}
    roles = []
    if config.judge_kind == "llm":
        # repeats at temperature 0 would say how deterministic the server is, not how sure the judge
        temperature = 0.0 if config.judge_repeats == 1 else 1.0
        roles.append(config.judge.role("judge", temperature=temperature, **options))
    if config.second_judge.model is not None:
        roles.append(config.second_judge.role("second_judge", temperature=0.0, **options))
    return roles
