"""The self-edits that are learned one after the other: given beforehand, or written by the model as
it is by then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.domains.knowledge.config import chosen_preset
from training.domains.knowledge.continual import Continual, Edit
from training.domains.knowledge.continual_config import (
    ContinualConfig,
    edit_form,
    edits_kind,
    generator_role,
)
from training.domains.knowledge.continual_methods import Method
from training.domains.knowledge.continual_passages import Drawn
from training.domains.knowledge.edits import GENERATOR, read_edits, write_edits
from training.domains.knowledge.forms import Choices, EditPrompts
from training.domains.knowledge.own_edits import EditSampling, EditWriter
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.sources import Source
from training.endpoints import Endpoints
from training.models import context_length
from utils.llm.client import LLMClient
from utils.llm.roles import describe_roles
from utils.runs.files import expanded
from utils.runs.run_dir import RunDir

logger = logging.getLogger(__name__)


class EditSource:
    """`given` holds what was written beforehand, by the passage's id; `told` says by whom."""

    def __init__(
        self,
        config: ContinualConfig,
        source: Source,
        tokenizer: Any,
        passages: Sequence[Passage],
    ) -> None:
        """Raises ConfigError for a file of edits that does not do, and for passages whose prompts
        do not fit into the model's context."""
        self._config = config
        self._passages = passages
        self._kind = edits_kind(config)
        self.form = edit_form(config)
        self.given: dict[str, Edit] = {}
        small = chosen_preset(config) == "small"
        if self._kind == "template":
            for passage in passages:
                text = source.template_edit(passage, self.form, config.seed)
                assert text is not None
                self.given[passage.id] = Edit(text)
        elif config.edits_file is not None:
            self._read(read_edits(expanded(config.edits_file), passages, 1).texts_P_K)
        if self._kind in ("model", "generator"):
            self._prompts = EditPrompts(
                self.form,
                prompt_form=config.edit_prompt or ("chat" if small else "raw"),
                example_edit=source.example_edit,
            )
            sampling = EditSampling(
                tokenizer=tokenizer, max_tokens=config.max_tokens, temperature=config.temperature
            )
            self._writer = EditWriter(self._prompts, sampling, seed=config.seed)
        if self._kind == "model":
            self._writer.check(passages, context_length(config.model_name))

    @property
    def told(self) -> str:
        if self._kind is not None:
            return f"form {self.form}, edits={self._kind}"
        form = "" if self._config.form is None else f", form {self._config.form}"
        return f"of a file{form}"

    def require_models(self, run: RunDir, endpoints: Endpoints) -> None:
        """Raises ConfigError where the run began with another model in the role `generator`."""
        if self._kind == "generator":
            role = generator_role(self._config)
            describe_roles(role)
            endpoints.require_models(run, {f"{GENERATOR}.model": role})

    def generate(self, run_path: Path, endpoints: Endpoints) -> None:
        """Has the role `generator` write them, where it is to; its replies are kept in
        calls.jsonl."""
        if self._kind == "generator":
            self._read(asyncio.run(self._generated(endpoints, run_path / "calls.jsonl")))

    def next(
        self,
        drawn: Drawn,
        places: Sequence[int],
        adapters_S: Sequence[Sequence[str]],
        continual: Continual,
        method: Method,
    ) -> list[list[Edit]]:
        """For each sequence the edits of its passages at these places, by the model with these
        adapters where none was given."""
        if self._kind != "model":
            return [[self.given[row[p].id] for p in places] for row in drawn.sequences_S_K]
        samplers_S = [continual.sampler(method, adapters) for adapters in adapters_S]
        found_S: list[list[Edit]] = [[] for _ in adapters_S]
        for place in places:
            passages_S = [row[place] for row in drawn.sequences_S_K]
            texts_S = self._writer.write(passages_S, samplers_S, place)
            for edits, text in zip(found_S, texts_S, strict=True):
                edits.append(Edit.of(text, self.form, Choices()))
        _warn_of_failed([edit for edits in found_S for edit in edits])
        return found_S

    # ------------------------------------------------------------------------------------- private

    async def _generated(self, endpoints: Endpoints, cache_path: Path) -> list[list[str]]:
        client = LLMClient(endpoints.open([generator_role(self._config)]), cache_path=cache_path)
        async with client:
            return (await write_edits(client, self._prompts, self._passages, 1)).texts_P_K

    def _read(self, texts_P_K: Sequence[Sequence[str]]) -> None:
        # a file's are what they are, unless their form is said
        as_written = self._kind is None and self._config.form is None
        for passage, texts_K in zip(self._passages, texts_P_K, strict=True):
            if not texts_K:
                edit = Edit("", note="there is no self-edit of this passage")
            elif as_written:
                edit = Edit(texts_K[0])
            else:
                edit = Edit.of(texts_K[0], self.form, Choices())
            self.given[passage.id] = edit
        _warn_of_failed(list(self.given.values()))


def _warn_of_failed(edits: Sequence[Edit]) -> None:
    notes = [edit.note for edit in edits if edit.note]
    if notes:
        logger.warning(
            "%d of %d passages are trained on without a self-edit (%s)",
            *(len(notes), len(edits), "; ".join(dict.fromkeys(notes))),
        )
