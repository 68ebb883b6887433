"""The edits that rows are trained on: from templates, from the model itself, from another model, or
from a file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.knowledge.rows import FILE, GENERATOR, OF_MODEL, TEMPLATE, Edit, Edits
from training.api import ServiceClient
from training.domains.knowledge.edit_parsing import EditError, parse_edit
from training.domains.knowledge.edits import write_edits
from training.domains.knowledge.forms import EditPrompts
from training.domains.knowledge.own_edits import EditSampling
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.sources import Source
from training.endpoints import Endpoints
from training.rl.updates import seed_for
from utils.llm.api import Role
from utils.llm.client import LLMClient
from utils.runs.files import append_jsonl, read_jsonl

logger = logging.getLogger(__name__)


def template_edits(source: Source, passages_P: Sequence[Passage], form: str, seeds: int) -> Edits:
    """The generator's own, another one for each seed. Raises ValueError where it has none."""
    made = []
    for passage in passages_P:
        texts_S = [source.template_edit(passage, form, s) for s in range(seeds)]
        if None in texts_S:
            raise ValueError(f"source={source.name}: it has no template of form {form}")
        made.append([[Edit(text)] for text in texts_S if text is not None])
    return made


@dataclass(frozen=True, kw_only=True)
class OwnModel:
    """How the untrained model writes, of which `context` is the longest prompt with an answer."""

    service: ServiceClient
    base_model: str
    sampling: EditSampling
    seed: int
    context: int | None = None

    def texts(self, prompts: EditPrompts, passages_P: Sequence[Passage], k: int) -> list[list[str]]:
        """`k` texts about each passage, all in one batch; none about those that are too long to be
        read."""
        readable = [passage for passage in passages_P if self._fits(prompts, passage)]
        if len(readable) < len(passages_P):
            logger.warning(
                "form %s: %d of %d passages leave no room for an edit in the model's context of %d "
                "tokens",
                *(prompts.form, len(passages_P) - len(readable), len(passages_P), self.context),
            )
        sampler = self.service.create_sampling_client(base_model=self.base_model)
        seeds = [seed_for(self.seed, "edits", prompts.form, p.id) for p in readable]
        found = self.sampling.texts(prompts, readable, [sampler] * len(readable), seeds, k)
        texts = {passage.id: texts_K for passage, texts_K in zip(readable, found, strict=True)}
        return [texts.get(passage.id, []) for passage in passages_P]

    def _fits(self, prompts: EditPrompts, passage: Passage) -> bool:
        return self.context is None or self.sampling.prompt_length(prompts, passage) < self.context


@dataclass(frozen=True)
class Calls:
    """How another model, of the role `generator`, is asked; replies are kept at `cache_path`."""

    endpoints: Endpoints
    roles: Sequence[Role]
    cache_path: Path
    max_concurrency: int

    def texts(self, prompts: EditPrompts, passages_P: Sequence[Passage], k: int) -> list[list[str]]:
        """`k` texts about each passage, fewer where calls fail."""

        async def ask() -> list[list[str]]:
            client = LLMClient(
                self.endpoints.open(self.roles),
                cache_path=self.cache_path,
                max_concurrency=self.max_concurrency,
            )
            async with client:
                return (await write_edits(client, prompts, passages_P, k)).texts_P_K

        return asyncio.run(ask())


def read_as(
    texts_P_K: Sequence[Sequence[str]], prompts: EditPrompts, k: int
) -> list[list[Edit | None]]:
    """Each text as an edit of the prompts' form, None where it is none or there is no text."""
    edits_P_K: list[list[Edit | None]] = []
    for texts_K in texts_P_K:
        edits_K: list[Edit | None] = []
        for text in texts_K:
            try:
                parsed = parse_edit(text, prompts.form, choices=prompts.choices)
                edits_K.append(Edit(parsed.text, parsed.learning_rate))
            except EditError as error:
                logger.info("no edit: %s", error)
                edits_K.append(None)
        edits_P_K.append(_filled(edits_K, k))
    return edits_P_K


def for_seeds(edits_P_K: Sequence[Sequence[Edit | None]], seeds: int) -> Edits:
    """The same edits for each seed."""
    return [[edits_K] * seeds for edits_K in edits_P_K]


class WrittenFile:
    """What was written, a line for each writer, so that a run goes on with the same edits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[tuple[str, str], list[str]] = {}
        for record in read_jsonl(path, missing_ok=True):
            self._remember(record["writer"], record["texts"])

    def get(self, writer: str, passages_P: Sequence[Passage]) -> list[list[str]] | None:
        """None where the writer has not written about all of them."""
        found = [self._known.get((writer, passage.id)) for passage in passages_P]
        return None if None in found else [texts for texts in found if texts is not None]

    def add(
        self, writer: str, passages_P: Sequence[Passage], texts_P_K: Sequence[Sequence[str]]
    ) -> None:
        texts = {p.id: list(texts_K) for p, texts_K in zip(passages_P, texts_P_K, strict=True)}
        append_jsonl(self._path, {"writer": writer, "texts": texts})
        self._remember(writer, texts)

    def _remember(self, writer: str, texts: Mapping[str, list[str]]) -> None:
        self._known |= {(writer, passage): texts_K for passage, texts_K in texts.items()}


@dataclass(frozen=True)
class Writers:
    """The edits of rows by the name of their writer: template-FORM, model-FORM, generator, file.
    What models write they are asked for once, `k` texts about each passage; `written` keeps it."""

    source: Source
    written: WrittenFile
    prompts: Mapping[str, EditPrompts]
    seeds: int
    k: int
    own_model: OwnModel
    calls: Calls
    from_file: Sequence[Sequence[str]]

    def edits(self, writer: str, passages_P: Sequence[Passage]) -> Edits:
        """Raises LLMError where calls to another model end before all were made."""
        if writer.startswith(TEMPLATE):
            form = writer.removeprefix(TEMPLATE)
            return template_edits(self.source, passages_P, form, self.seeds)
        if writer == FILE:
            edits_P_K = [[Edit(text.strip()) for text in texts_K] for texts_K in self.from_file]
            return for_seeds([_filled(edits_K, self.k) for edits_K in edits_P_K], self.seeds)
        is_model = writer != GENERATOR
        form = writer.removeprefix(OF_MODEL) if is_model else next(iter(self.prompts))
        prompts = self.prompts[form]
        texts_P_K = self.written.get(writer, passages_P)
        if texts_P_K is None:
            logger.info("%s: %d edits of each of %d passages", writer, self.k, len(passages_P))
            asked = self.own_model if is_model else self.calls
            texts_P_K = asked.texts(prompts, passages_P, self.k)
            self.written.add(writer, passages_P, texts_P_K)
        return for_seeds(read_as(texts_P_K, prompts, self.k), self.seeds)


def expected_edits(
    writers: Sequence[str], source: Source, passages_P: Sequence[Passage], seeds: int, k: int
) -> dict[str, Edits]:
    """For a plan before anything is written: edits of models and files twice as long as their
    passages."""
    edits_P_K = [
        [Edit(f"{p.context}\n{p.context} ({i + 1})") for i in range(k)] for p in passages_P
    ]
    edits: dict[str, Edits] = dict.fromkeys(writers, for_seeds(edits_P_K, seeds))
    for writer in writers:
        if writer.startswith(TEMPLATE):
            form = writer.removeprefix(TEMPLATE)
            edits[writer] = template_edits(source, passages_P, form, seeds)
    return edits


def _filled(edits_K: Sequence[Edit | None], k: int) -> list[Edit | None]:
    return [*edits_K, *[None] * (k - len(edits_K))]
