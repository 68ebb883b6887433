"""Settings of continual self-edits: sequences of passages, methods, and who writes the edits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import chz

from training.domains.knowledge.config import KnowledgeConfig, chosen_preset, chosen_source
from training.domains.knowledge.continual_methods import Method, parse_method
from training.domains.knowledge.edits import GENERATOR
from training.domains.knowledge.forms import PromptForm, check_form
from training.domains.knowledge.made_edits import TEMPLATE_FORMS
from training.endpoints import Endpoints
from utils.config.errors import problems_of, raise_problems
from utils.config.help import SAMPLING, WHAT
from utils.llm.api import Role
from utils.llm.roles import RoleConfig
from utils.runs.inputs import INPUT

EditKind = Literal["template", "model", "generator"]
DEFAULT_METHODS = ("merge", "replay", "distill", "library")


@chz.chz(typecheck=True)
class ContinualConfig(KnowledgeConfig):
    n_passages: int = chz.field(
        default=6, doc="of a sequence, K: one self-edit each (SEAL: 8)", metadata=WHAT
    )
    n_sequences: int = chz.field(default=4, doc="S, whose steps run together (SEAL: 64)")
    methods: list[str] = chz.field(
        default_factory=lambda: list(DEFAULT_METHODS),
        doc="merge, replay=LINES, gate=em|nats|kl, distill, library, joint",
    )
    method: str | None = chz.field(default=None, doc="one of them alone, instead of methods")
    gate_budget: float | None = chz.field(
        default=None,
        doc="of gate: what a self-edit may cost; default: 0 of accuracy (em), 2 bits of a right "
        "answer (nats), 0.3 bits of divergence (kl), all of them STABLE's (arXiv 2510.16089)",
    )
    ask_ahead: bool = chz.field(
        default=False, doc="ask about passages that are still to come, too: forward transfer"
    )
    n_untouched: int = chz.field(
        default=1, doc="passages that are never learned, asked about after each step"
    )
    draw_from: int | None = chz.field(
        default=None,
        doc="passages of a file that sequences are drawn from; default: 2067 of source=squad (all "
        "that SEAL has), as many as are needed of own",
    )

    edits: EditKind | None = chz.field(
        default=None,
        doc="template (the generator of a made world writes them), model (the model as it is by "
        "then), generator (another model, by its role); default: template with source=made, "
        "else model",
        metadata=SAMPLING,
    )
    edits_file: Path | None = chz.field(
        default=None,
        doc="self-edits from a file instead: SEAL's JSON, or JSON lines",
        metadata=INPUT,
    )
    form: str | None = chz.field(
        default=None,
        doc="of self-edits (docs/knowledge.md lists them); model: the model chooses it; default: "
        "qa with preset=small, else implications; edits of a file are taken as they are",
    )
    edit_prompt: PromptForm | None = chz.field(
        default=None, doc="raw (for base models) or chat; default: raw with preset=seal, else chat"
    )
    max_tokens: int = chz.field(default=384, doc="longest self-edit that is sampled (SEAL: 8192)")
    temperature: float = chz.field(default=1.0, doc="of sampled self-edits")
    generator: RoleConfig = chz.field(default_factory=RoleConfig, doc="of edits=generator")

    @chz.validate
    def _check_continual(self) -> None:
        problems = [
            f"{name}={getattr(self, name)}: at least {least} is needed"
            for name, least in (
                *(("n_passages", 1), ("n_sequences", 1), ("n_untouched", 0), ("max_tokens", 1)),
                ("draw_from", 1),
            )
            if getattr(self, name) is not None and getattr(self, name) < least
        ]
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature={self.temperature}: a number from 0 is needed")
        problems += problems_of(lambda: chosen_methods(self), lambda: check_edits(self))
        raise_problems(problems)


def chosen_methods(config: ContinualConfig) -> list[Method]:
    """Raises ConfigError with all that is wrong with them."""
    labels = config.methods if config.method is None else [config.method]
    problems = []
    if config.method is not None and config.methods != list(DEFAULT_METHODS):
        problems.append(f"method={config.method} and methods={config.methods}; give one of them")
    if not labels or len(set(labels)) < len(labels):
        problems.append(f"methods={labels}: one or more are needed, each once")
    methods: list[Method] = []
    for label in labels:
        problems += problems_of(lambda label=label: methods.append(parse_method(label)))
    budget = config.gate_budget
    if budget is not None and not problems and not any(m.gate for m in methods):
        problems.append(f"gate_budget={budget}: no method is a gate; add gate=em, nats or kl")
    if budget is not None and not -1 <= budget < float("inf"):
        problems.append(f"gate_budget={budget}: a number from -1 is needed")
    raise_problems(problems)
    return methods


def edits_kind(config: ContinualConfig) -> EditKind | None:
    """None: they come from a file."""
    if config.edits_file is not None:
        return None
    return config.edits or ("template" if chosen_source(config) == "made" else "model")


def edit_form(config: ContinualConfig) -> str:
    return config.form or ("qa" if chosen_preset(config) == "small" else "implications")


def check_edits(config: ContinualConfig) -> None:
    """Raises ConfigError with all that is wrong with where they come from."""
    problems = []
    kind, form = edits_kind(config), edit_form(config)
    if config.edits_file is not None and config.edits is not None:
        problems.append(f"edits={config.edits} and edits_file={config.edits_file}; give one")
    if kind == "template" and chosen_source(config) != "made":
        problems.append(
            f"source={chosen_source(config)}: only made worlds have a generator, which "
            "edits=template asks; give edits=model or generator, or an edits_file"
        )
    if kind == "template" and form not in TEMPLATE_FORMS:
        problems.append(
            f"form={form!r} with edits=template; allowed are {', '.join(TEMPLATE_FORMS)}"
        )
    if kind != "template":
        problems += problems_of(lambda: check_form(form))
    if kind == "generator":
        problems += Endpoints(device=config.device, dtype=config.dtype).check(
            [generator_role(config)]
        )
    elif config.generator != RoleConfig():
        problems.append("generator: edits=generator asks it; leave generator.... out, or set that")
    raise_problems(problems)


def generator_role(config: ContinualConfig) -> Role:
    return config.generator.role(
        GENERATOR,
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        seed=config.seed,
    )
