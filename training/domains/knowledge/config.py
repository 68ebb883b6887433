"""Settings of what is to be known and how it is learned, for all scripts that train on passages."""

import dataclasses
from typing import Any, Literal

import chz

from training.domains.knowledge.anchors import AnchorKind, anchor_passages
from training.domains.knowledge.documents import DocumentForm
from training.domains.knowledge.inner import InnerSettings, Preset, preset
from training.domains.knowledge.llm_judge import JudgeKind, judge_problems
from training.domains.knowledge.sources import Source, SourceName, open_source
from utils.config.entrypoint import ConfigError, raise_problems
from utils.config.help import EVALUATION, MODEL, WHAT, group
from utils.config.ranges import range_problems
from utils.devices import DTYPE_DOC, Dtype
from utils.llm.roles import RoleConfig
from utils.runs.inputs import INPUT

PromptForm = Literal["raw", "chat"]
EMBEDDED = "embedded"


@chz.chz(typecheck=True)
class KnowledgeConfig:
    seed: int = chz.field(default=0, doc="of worlds, adapters and sampling", metadata=WHAT)
    source: SourceName | None = chz.field(
        default=None,
        doc="made (a generated world), squad, or own (a file of passages); default: made with the "
        "embedded model, else squad",
    )
    data_path: str | None = chz.field(
        default=None,
        doc="of source=squad (default: the hub) and own: a file or folder",
        metadata=INPUT,
    )
    kinds: list[str] = chz.field(
        default_factory=list, doc="of things in a made world; default: all six"
    )
    first_passage: int = chz.field(
        default=0, doc="of a file's passages, shuffled as SEAL does: where the held-out ones begin"
    )

    model_name: str = chz.field(
        default=EMBEDDED, doc="base model of policy and adapters", metadata=MODEL
    )
    device: str | None = chz.field(
        default=None, doc="cpu or cuda; default: cuda where there is one"
    )
    dtype: Dtype | None = chz.field(default=None, doc=DTYPE_DOC)
    max_parallel_adapters: int = chz.field(default=16, doc="adapters in memory at a time")

    preset: Preset | None = chz.field(
        default=None,
        doc="of the inner runs: small, or seal (arXiv 2506.10943); default: small with the "
        "embedded model, else seal",
        metadata=group("Inner runs: an adapter for each self-edit"),
    )
    documents: DocumentForm | None = chz.field(
        default=None, doc="lines: each line a sequence; seal: as published; default: the preset's"
    )
    inner_rank: int | None = chz.field(default=None, doc="of the adapters (seal: 32)")
    inner_alpha: float | None = chz.field(default=None, doc="their alpha (seal: 64)")
    inner_targets: list[str] | None = chz.field(
        default=None, doc="layers of the adapters (seal: q_proj, v_proj)"
    )
    inner_learning_rate: float | None = chz.field(
        default=None, doc="unless the edit chooses it (seal: 1e-3)"
    )
    inner_epochs: int | None = chz.field(default=None, doc="passes over an edit (seal: 10)")
    inner_batch_size: int | None = chz.field(default=None, doc="sequences per step (seal: 1)")
    kl_weight: float = chz.field(
        default=0.0, doc="holds adapters to the base model on questions about other things"
    )
    kl_anchors: AnchorKind | None = chz.field(
        default=None,
        doc="of kl_weight: everyday questions as lines of a self-edit (lines) or in the answer "
        "prompt (prompts), or questions about made things in it (things); default: lines, prompts "
        "with prompt_form=chat",
    )
    early_stop: bool = chz.field(
        default=False, doc="stop when the loss of an edit's last line, held out, rises"
    )
    mask_until: str = chz.field(
        default="", doc="nothing up to and with this text is learned of a sequence"
    )

    prompt_form: PromptForm | None = chz.field(
        default=None,
        doc="of questions: raw (plain text) or chat; default: raw with preset=seal and the "
        "embedded model",
        metadata=EVALUATION,
    )
    max_answer_tokens: int = chz.field(default=24, doc="longest answer (SEAL: 64)")
    judge_kind: JudgeKind = chz.field(
        default="rule",
        doc="rule: all words of the right answer; phrase: together; llm: the role judge",
    )
    judge: RoleConfig = chz.field(default_factory=RoleConfig, doc="of judge_kind=llm")

    @chz.validate
    def _check_knowledge(self) -> None:
        counts = ("max_parallel_adapters", "inner_rank", "inner_epochs", "inner_batch_size")
        problems = range_problems(
            self,
            at_least_1=(*counts, "max_answer_tokens"),
            at_least_0=("first_passage",),
            from_0=("kl_weight",),
            above_0=("inner_alpha", "inner_learning_rate"),
        )
        if self.kl_anchors is not None and not self.kl_weight:
            problems.append(
                f"kl_anchors={self.kl_anchors}: with kl_weight=0 nothing is held; set kl_weight"
            )
        problems += judge_problems(self.judge_kind, self.judge)
        raise_problems(problems)


def chosen_source(config: KnowledgeConfig) -> SourceName:
    if config.source is not None:
        return config.source
    return "made" if config.model_name == EMBEDDED else "squad"


def chosen_preset(config: KnowledgeConfig) -> Preset:
    if config.preset is not None:
        return config.preset
    return "small" if config.model_name == EMBEDDED else "seal"


def source_of(config: KnowledgeConfig, *, num_train: int, num_test: int) -> Source:
    """Raises ConfigError and FileNotFoundError, see open_source."""
    return open_source(
        chosen_source(config),
        data_path=config.data_path,
        seed=config.seed,
        num_train=num_train,
        num_test=num_test,
        start=config.first_passage,
        kinds=config.kinds,
    )


def inner_settings(
    config: KnowledgeConfig, source: Source, context: int | None, **changes: Any
) -> InnerSettings:
    """For a model that takes `context` tokens; `changes` are fields of InnerSettings. Raises
    ConfigError for anchors that do not go with the answer prompt."""
    base = preset(chosen_preset(config), base_model=config.model_name, seed=config.seed)
    lora = dict(base.adapt.lora)
    given = {
        "rank": config.inner_rank,
        "lora_alpha": config.inner_alpha,
        "target_modules": config.inner_targets,
    }
    lora |= {name: value for name, value in given.items() if value is not None}
    adapt = dataclasses.replace(
        base.adapt,
        lora=lora,
        batch_size=config.inner_batch_size or base.adapt.batch_size,
        anchor_weight=config.kl_weight,
        max_parallel=config.max_parallel_adapters,
    )
    own: dict[str, Any] = {
        "documents": config.documents,
        "learning_rate": config.inner_learning_rate,
        "num_epochs": config.inner_epochs,
        "prompt_form": config.prompt_form,
    }
    own = {name: value for name, value in own.items() if value is not None}
    if config.kl_weight:
        is_raw = own.get("prompt_form", base.prompt_form) == "raw"
        kind = config.kl_anchors or ("lines" if is_raw else "prompts")
        if kind == "lines" and not is_raw:
            raise ConfigError(
                "kl_anchors=lines: answers to a chat do not go on with a line; prompt_form=raw or "
                "kl_anchors=prompts do"
            )
        own |= {
            "anchors": anchor_passages(kind, source),
            "anchors_as_lines": kind == "lines",
        }
    own |= {
        "early_stop": config.early_stop,
        "mask_until": config.mask_until,
        "max_answer_tokens": config.max_answer_tokens,
        "context": context,
    }
    return dataclasses.replace(base, adapt=adapt, **(own | changes))
