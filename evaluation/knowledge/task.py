"""What the settings of a table of edits come to: passages, rows, and those who write."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, NamedTuple

from evaluation.knowledge.choice import default_rows, expanded_rows
from evaluation.knowledge.rows import (
    GENERATOR,
    NEED_QUESTIONS,
    OTHER,
    SKILL,
    UNTRAINED,
    Rules,
    others_of,
)
from evaluation.knowledge.table_config import TableConfig
from evaluation.knowledge.writing import Calls, OwnModel, Writers, WrittenFile
from training.api import ServiceClient
from training.connect import has_own_engines
from training.domains.knowledge.config import chosen_source, inner_settings, source_of
from training.domains.knowledge.edits import read_edits
from training.domains.knowledge.forms import EditPrompts
from training.domains.knowledge.inner import InnerLoop, InnerSettings
from training.domains.knowledge.own_edits import EditSampling
from training.domains.knowledge.own_files import read_own
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.sources import Source, TooFewError
from training.endpoints import Endpoints
from training.models import check_rank, context_length, load_tokenizer, resolve_model
from utils.config.errors import ConfigError, problems_of, raise_problems
from utils.llm.api import Role
from utils.runs.files import expanded
from utils.runs.run_dir import RunDir

logger = logging.getLogger(__name__)

# of the passage alone, which learns more slowly and is made worse by high rates
# (benchmarks/knowledge_evidence.py)
SMALL_PASSAGE_EPOCHS, SMALL_PASSAGE_RATE = 20, 1e-3


class Task(NamedTuple):
    """What the settings come to."""

    source: Source
    passages: list[Passage]
    has_questions: bool
    rows: list[str]
    tokenizer: Any
    settings: InnerSettings
    prompts: dict[str, EditPrompts]
    from_file: list[list[str]]
    roles: list[Role]


def check(config: TableConfig, endpoints: Endpoints) -> Task:
    """Everything that can be wrong, before a model is loaded or a file written."""
    means = config.means
    roles = []
    if means.has_generator:
        role = partial(config.generator.role, temperature=config.temperature, seed=config.seed)
        roles.append(role(GENERATOR, max_tokens=config.max_tokens))
    problems = endpoints.check(roles)
    if has_own_engines(config.backend):
        problems += problems_of(lambda: resolve_model(config.model_name))
    raise_problems(problems)
    if config.inner_rank is not None:
        check_rank(config.model_name, "inner_rank", config.inner_rank)
    rows = expanded_rows(config.rows or default_rows(means), means)
    others = config.skill_passages if SKILL in rows else 0
    try:
        source = source_of(config, num_train=others, num_test=number_of_passages(config, others))
    except TooFewError as error:
        of_skill = f"; {others} of them are for the row skill, see skill_passages" * bool(others)
        raise ConfigError(f"{error}{of_skill}") from error
    passages = source.passages("test")
    has_questions = any(passage.questions for passage in passages)
    if not has_questions:
        rows = [row for row in rows if row not in (*UNTRAINED, *NEED_QUESTIONS)]
        logger.warning(
            "no passage has a question: edits are written and trained on, nothing is measured"
        )
    if OTHER in rows:
        others_of(passages)
    from_file: list[list[str]] = []
    if config.edits_file is not None:
        from_file = read_edits(expanded(config.edits_file), passages, config.k).texts_P_K
    settings = inner_settings(
        config, source, context_length(config.model_name), choices=config.choices
    )
    prompt_form = config.edit_prompt or ("chat" if config.is_small else "raw")
    prompts = {
        form: EditPrompts(form, prompt_form=prompt_form, example_edit=source.example_edit)
        for form in means.forms
    }
    tokenizer = load_tokenizer(config.model_name)
    return Task(
        source, passages, has_questions, rows, tokenizer, settings, prompts, from_file, roles
    )


def number_of_passages(config: TableConfig, others: int) -> int:
    """As given, or else few made ones, all of a file but `others`, at most 200."""
    if config.n_passages is not None:
        return config.n_passages
    if chosen_source(config) == "made":
        return 6 if config.setting == "single" else 12
    if chosen_source(config) == "own" and config.data_path is not None:
        path = expanded(config.data_path)
        if path.exists():
            return max(1, min(200, len(read_own(path, [])) - config.first_passage - others))
    return 200


def make_rules(config: TableConfig, counter: InnerLoop) -> Rules:
    epochs, rate = config.passage_epochs, config.passage_learning_rate
    if config.is_small:
        epochs, rate = epochs or SMALL_PASSAGE_EPOCHS, rate or SMALL_PASSAGE_RATE
    return Rules(
        setting=config.setting,
        seeds=config.seeds,
        seed=config.seed,
        reference=config.means.reference,
        pool=config.means.pool,
        passage_rate=rate,
        passage_epochs=epochs,
        count=counter.trained_tokens,
    )


def make_writers(
    config: TableConfig, task: Task, run: RunDir, service: ServiceClient, endpoints: Endpoints
) -> Writers:
    return Writers(
        task.source,
        WrittenFile(run.path / "edits.jsonl"),
        task.prompts,
        config.seeds,
        config.k,
        OwnModel(
            service=service,
            base_model=config.model_name,
            sampling=EditSampling(
                tokenizer=task.tokenizer,
                max_tokens=config.max_tokens,
                temperature=config.temperature,
                use_grammar=config.use_grammar and has_own_engines(config.backend),
            ),
            seed=config.seed,
            context=task.settings.context,
        ),
        Calls(endpoints, task.roles, run.path / "calls.jsonl", config.max_concurrency),
        task.from_file,
    )
