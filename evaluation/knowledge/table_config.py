"""Settings of a table of edits: its rows, who writes the edits, and what is asked."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import chz

from evaluation.knowledge.choice import Means, default_rows, row_problems
from evaluation.knowledge.rows import Setting
from training.connect import (
    BACKEND_DOC,
    NUM_ENGINES_DOC,
    SAMPLER_DOC,
    SAMPLER_OPTIONS_DOC,
    Backend,
    Sampler,
    SamplerOptions,
    has_own_engines,
    temperature_problems,
)
from training.domains.knowledge.config import KnowledgeConfig, chosen_preset, chosen_source
from training.domains.knowledge.forms import MODEL as MODEL_FORM
from training.domains.knowledge.forms import PromptForm, check_form
from utils.config.errors import problems_of, raise_problems
from utils.config.help import EVALUATION, MODEL, SAMPLING, WHAT
from utils.config.ranges import range_problems
from utils.llm.roles import RoleConfig
from utils.runs.inputs import INPUT


@chz.chz(typecheck=True)
class TableConfig(KnowledgeConfig):
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

    backend: Backend = chz.field(default="local", doc=BACKEND_DOC, metadata=MODEL)
    num_engines: int | None = chz.field(default=None, doc=NUM_ENGINES_DOC)
    base_url: str | None = chz.field(default=None, doc="server of backend=tinker")
    sampler: Sampler = chz.field(default="local", doc=SAMPLER_DOC)
    sampler_options: SamplerOptions = chz.field(default_factory=dict, doc=SAMPLER_OPTIONS_DOC)
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

    @chz.validate
    def _check(self) -> None:
        counts = ("n_passages", "seeds", "passage_epochs", "skill_passages", "k", "max_tokens")
        problems = range_problems(
            self,
            at_least_1=counts,
            from_0=("temperature",),
            above_0=("passage_learning_rate",),
        )
        problems += temperature_problems(self.sampler, temperature=self.temperature)
        if not 1 <= self.distill_top_k <= 20:
            problems.append(f"distill_top_k={self.distill_top_k}: 1 to 20")
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
            sums=has_own_engines(self.backend),
        )
