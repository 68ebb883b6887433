"""Evaluates what nobody trained here: a language model that reads the task as text, or an exact
predictor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from evaluation.icl.checks import total_sequences
from evaluation.icl.evaluator import (
    Answers,
    ModelEvaluator,
    Sequences,
    counted,
    predictor_answers,
    text_answers,
)
from evaluation.icl.runs import number_rows, sequences_of, write_metrics
from evaluation.icl.text import Items, TextModel, choose_items, context_problems
from training.api import ServiceClient, TrainingClient
from training.backends.local.checkpoints import read_state
from training.icl.config import LLM, Bayes, Evaluation, Model, run_folder_name
from training.icl.settings import Setting
from training.loop import require_models
from training.models import context_length, load_tokenizer
from utils.config.entrypoint import as_config_errors, dump_yaml, load_yaml, raise_problems, to_plain
from utils.runs.progress import progress
from utils.runs.run_dir import RunDir


class UntrainedConfig(Protocol):
    """What of icl_eval.py's settings counts here."""

    @property
    def model(self) -> Model | None: ...
    @property
    def setting(self) -> Setting: ...
    @property
    def evaluation(self) -> Evaluation: ...
    @property
    def runs_dir(self) -> Path: ...


def untrained_folder(model: LLM | Bayes, argv: Sequence[str]) -> str:
    """The run's folder in its experiment: by what the command line sets, else by the model."""
    name = run_folder_name(argv)
    if name != "run":
        return name
    return "LLM" if isinstance(model, LLM) else f"Bayes-{model.predictor}"


def choose_words(model: LLM, setting: Setting) -> Items:
    """The words of the text, checked with the tokenizer alone; no model is loaded. ConfigError for
    words that will not do and for sequences over the model's context."""
    with as_config_errors():
        tokenizer = load_tokenizer(model.model_name)
        limit = context_length(model.model_name)
        if model.checkpoint is not None:
            read_state(model.checkpoint)
    raise_problems(context_problems(setting.input_length, limit, model.model_name))
    return choose_items(tokenizer, setting.num_dims, model.words)


def load_untrained(
    config: UntrainedConfig, run: RunDir, service: ServiceClient, items: Items | None
) -> tuple[Answers, Sequences]:
    """What answers, and what it is asked; `items` are a language model's words. Raises ConfigError
    for what only the loaded model tells."""
    if isinstance(config.model, LLM):
        assert items is not None
        model = config.model
        adapters = {} if model.checkpoint is None else {"model.checkpoint": model.checkpoint}
        require_models(run, service, {"model.model_name": model.model_name}, adapters)
        with as_config_errors():
            client = _text_client(service, model)
            answers = text_answers(TextModel(client, items))
        return answers, sequences_of(config.setting, config.evaluation, config.runs_dir)
    assert isinstance(config.model, Bayes)
    sequences = sequences_of(config.setting, config.evaluation, config.runs_dir)
    answers = predictor_answers(config.model.predictor, sequences.family, sequences.tasks)
    return answers, sequences


def evaluate_once(
    config: UntrainedConfig,
    run: RunDir,
    answers: Answers,
    sequences: Sequences,
    items: Items | None,
) -> None:
    """metrics.pt and its tables in the run's folder, and its numbers under icl_train.py's names in
    metrics.jsonl."""
    extra: dict[str, Any] = {} if items is None else {"items": items._asdict()}
    total = total_sequences(config.setting, config.evaluation)
    with progress(total, "icl_eval", "sequence") as bar:
        modes = ModelEvaluator(counted(answers, bar), sequences).evaluate()
    # a resumed run may have been given other settings of the evaluation than it began with
    stored = load_yaml(run.path / "config.yaml")
    dump_yaml(run.path / "config.yaml", {**stored, "evaluation": to_plain(config.evaluation)})
    write_metrics(run.path, modes, config.evaluation, step=None, **extra)
    names = {"standard": "id"}
    run.log_metrics(
        0,
        {
            f"eval/{names.get(row['mode'], row['mode'])}/{key}": value
            for row in number_rows(modes)
            if row["task"] is None
            for key, value in row.items()
            if isinstance(value, float)
        },
    )


def _text_client(service: ServiceClient, model: LLM) -> TrainingClient:
    """The model, or an adapter on it. A new adapter of rank 1 is the base model exactly."""
    if model.checkpoint is not None:
        return service.create_training_client_from_state(
            model.checkpoint, base_model=model.model_name
        )
    return service.create_lora_training_client(model.model_name, rank=1, seed=0)
