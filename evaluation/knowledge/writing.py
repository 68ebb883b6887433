"""The edits that rows are trained on: from templates, from the model itself, from another model, or
from a file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.knowledge.rows import FILE, GENERATOR, OF_MODEL, TEMPLATE, Edit, Edits
from training.api import ModelInput, SamplingParams, ServiceClient
from training.chat import parse_continuation, parse_response, stop_sequences
from training.domains.base import Problem
from training.domains.knowledge.edit_grammars import grammar_of
from training.domains.knowledge.edit_parsing import EditError, parse_edit
from training.domains.knowledge.edits import write_edits
from training.domains.knowledge.forms import EditPrompts
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.sources import Source
from training.endpoints import Endpoints
from training.rl.problems import prompt_tokens
from training.rl.updates import seed_for
from utils.llm.api import Role
from utils.llm.client import LLMClient
from utils.runs.files import append_jsonl, read_jsonl

logger = logging.getLogger(__name__)

# [passage][edit]
Write = Callable[[EditPrompts, Sequence[Passage]], Sequence[Sequence[str]]]


def template_edits(source: Source, passages_P: Sequence[Passage], form: str, seeds: int) -> Edits:
    """The generator's own, another one for each seed. Raises ValueError where it has none."""
    made = []
    for passage in passages_P:
        texts_S = [source.template_edit(passage, form, s) for s in range(seeds)]
        if None in texts_S:
            raise ValueError(f"source={source.name}: it has no template of form {form}")
        made.append([[Edit(text)] for text in texts_S if text is not None])
    return made


def sample_texts(
    service: ServiceClient,
    base_model: str,
    tokenizer: Any,
    prompts: EditPrompts,
    passages_P: Sequence[Passage],
    k: int,
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    use_grammar: bool,
) -> list[list[str]]:
    """What the untrained model writes, k times about each passage, in one batch."""
    sampler = service.create_sampling_client(base_model=base_model)
    problems_P = []
    for passage in passages_P:
        grammar = grammar_of(passage, prompts.form, choices=prompts.choices)
        problems_P.append(prompts.problem(passage, grammar=grammar if use_grammar else None))
    futures_P = [
        sampler.sample(
            ModelInput.from_ints(prompt_tokens(tokenizer, problem)),
            k,
            SamplingParams(
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed_for(seed, "edits", prompts.form, problem.id),
                stop=_stop(tokenizer, problem),
                grammar=problem.grammar,
            ),
        )
        for problem in problems_P
    ]
    return [
        [_text(tokenizer, problem, s.tokens) for s in future.result().sequences]
        for problem, future in zip(problems_P, futures_P, strict=True)
    ]


def ask_texts(
    endpoints: Endpoints,
    roles: Sequence[Role],
    prompts: EditPrompts,
    passages_P: Sequence[Passage],
    k: int,
    *,
    cache_path: Path,
    max_concurrency: int,
) -> list[list[str]]:
    """What the role `generator` writes, k texts about each passage, fewer where calls fail."""

    async def ask() -> list[list[str]]:
        client = LLMClient(
            endpoints.open(roles), cache_path=cache_path, max_concurrency=max_concurrency
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
    """What was written, by its writer and passage, so that a run goes on with the same edits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[tuple[str, str], list[str]] = {}
        for record in read_jsonl(path, missing_ok=True):
            self._known[record["writer"], record["passage"]] = record["texts"]

    def get(self, writer: str, passages_P: Sequence[Passage]) -> list[list[str]] | None:
        """None where the writer has not written about all of them."""
        found = [self._known.get((writer, passage.id)) for passage in passages_P]
        return None if None in found else [texts for texts in found if texts is not None]

    def add(
        self, writer: str, passages_P: Sequence[Passage], texts_P_K: Sequence[Sequence[str]]
    ) -> None:
        for passage, texts_K in zip(passages_P, texts_P_K, strict=True):
            record = {"writer": writer, "passage": passage.id, "texts": list(texts_K)}
            append_jsonl(self._path, record)
            self._known[writer, passage.id] = list(texts_K)


class Writers:
    """The edits of rows by the name of their writer: template-FORM, model-FORM, generator, file.
    `sample` and `ask` are what the model and another one write in the form of some prompts, k texts
    about each passage; they are asked once, and `written` keeps their texts."""

    def __init__(
        self,
        source: Source,
        written: WrittenFile,
        prompts: Mapping[str, EditPrompts],
        *,
        seeds: int,
        k: int,
        sample: Write,
        ask: Write,
        from_file: Sequence[Sequence[str]],
    ) -> None:
        self._source = source
        self._written = written
        self._prompts = prompts
        self._seeds, self._k = seeds, k
        self._sample, self._ask = sample, ask
        self._from_file = from_file

    def edits(self, writer: str, passages_P: Sequence[Passage]) -> Edits:
        if writer.startswith(TEMPLATE):
            form = writer.removeprefix(TEMPLATE)
            return template_edits(self._source, passages_P, form, self._seeds)
        if writer == FILE:
            edits_P_K = [[Edit(text.strip()) for text in texts_K] for texts_K in self._from_file]
            return for_seeds([_filled(edits_K, self._k) for edits_K in edits_P_K], self._seeds)
        is_model = writer != GENERATOR
        form = writer.removeprefix(OF_MODEL) if is_model else next(iter(self._prompts))
        prompts = self._prompts[form]
        texts_P_K = self._written.get(writer, passages_P)
        if texts_P_K is None:
            logger.info("%s: %d edits of each of %d passages", writer, self._k, len(passages_P))
            texts_P_K = (self._sample if is_model else self._ask)(prompts, passages_P)
            self._written.add(writer, passages_P, texts_P_K)
        return for_seeds(read_as(texts_P_K, prompts, self._k), self._seeds)


def placeholder_edits(passages_P: Sequence[Passage], seeds: int, k: int) -> Edits:
    """For a plan before anything is written: each edit twice as long as its passage."""
    edits_P_K = [
        [Edit(f"{p.context}\n{p.context} ({i + 1})") for i in range(k)] for p in passages_P
    ]
    return for_seeds(edits_P_K, seeds)


def _filled(edits_K: Sequence[Edit | None], k: int) -> list[Edit | None]:
    return [*edits_K, *[None] * (k - len(edits_K))]


def _stop(tokenizer: Any, problem: Problem) -> Any:
    if problem.raw is None:
        return stop_sequences(tokenizer)
    # None: a continuation ends with the model's end token
    return list(problem.raw.stop) or None


def _text(tokenizer: Any, problem: Problem, tokens: Sequence[int]) -> str:
    if problem.raw is None:
        return parse_response(tokenizer, tokens)
    return parse_continuation(tokenizer, tokens, problem.raw.stop)
