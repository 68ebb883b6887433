"""What can be said against an evaluation before anything is loaded."""

from __future__ import annotations

from training.icl.config import LLM, Bayes, Evaluation, Model
from training.icl.settings import BallsAndUrns, Classification, Setting


def mode_problems(setting: Setting, evaluation: Evaluation) -> list[str]:
    """Modes that this setting does not have."""
    problems = []
    name = type(setting).__name__
    if len(set(evaluation.modes)) < len(evaluation.modes):
        problems.append(f"evaluation.modes={evaluation.modes}: each once")
    if "single_task" in evaluation.modes and setting.num_tasks == "inf":
        problems.append(
            "evaluation.modes has single_task, and setting.num_tasks=inf has no tasks to go "
            "through; give a number of tasks, or leave the mode out"
        )
    if "iwl" in evaluation.modes:
        if not isinstance(setting, Classification):
            problems.append(f"evaluation.modes has iwl, which only Classification has; not {name}")
        elif setting.num_tasks == 1:
            problems.append(
                "evaluation.modes has iwl, and setting.num_tasks=1: a query whose item is not in "
                "the context needs 2 or more"
            )
    return problems


def total_sequences(setting: Setting, evaluation: Evaluation) -> int:
    """Of all modes together."""
    tasks = 0 if setting.num_tasks == "inf" else setting.num_tasks
    return evaluation.num_sequences * sum(
        tasks if mode == "single_task" else 1 for mode in evaluation.modes
    )


def hidden_gb(num_sequences: int, num_layers: int, input_length: int, hidden_size: int) -> float:
    """Gigabytes (1e9) of float16 states: sequences x kept layers x inputs x width x 2 bytes."""
    return num_sequences * num_layers * input_length * hidden_size * 2 / 1e9


def hidden_problems(
    evaluation: Evaluation, setting: Setting, *, num_layers: int, hidden_size: int
) -> list[str]:
    """Layers that are not there, and states that would take more than evaluation.max_hidden_gb."""
    if not evaluation.hidden_states:
        return []
    wrong = [layer for layer in evaluation.hidden_layers if not 0 <= layer <= num_layers]
    if wrong:
        return [
            f"evaluation.hidden_layers={wrong}: 0 (the embedding) to {num_layers} are allowed "
            f"for a model of {num_layers} layers"
        ]
    kept = len(kept_layers(evaluation, num_layers))
    count = total_sequences(setting, evaluation)
    needed = hidden_gb(count, kept, setting.input_length, hidden_size)
    if needed <= evaluation.max_hidden_gb:
        return []
    return [
        f"evaluation.hidden_states would take {needed:.3g} GB for each checkpoint ({count} "
        f"sequences x {kept} layers x {setting.input_length} inputs x {hidden_size} numbers x 2 "
        f"bytes), more than evaluation.max_hidden_gb={evaluation.max_hidden_gb:g}; take fewer "
        "evaluation.hidden_layers, evaluation.modes or evaluation.num_sequences, or allow more"
    ]


def kept_layers(evaluation: Evaluation, num_layers: int) -> list[int]:
    """Which of the num_layers + 1 states are kept."""
    return list(evaluation.hidden_layers) or list(range(num_layers + 1))


def untrained_problems(model: Model, setting: Setting, evaluation: Evaluation) -> list[str]:
    """What a language model or a predictor cannot do."""
    problems = mode_problems(setting, evaluation)
    if evaluation.hidden_states:
        problems.append(
            f"evaluation.hidden_states: only models of icl_train.py have them, not model="
            f"{type(model).__name__}"
        )
    if isinstance(model, Bayes) and model.predictor == "memorizing" and setting.num_tasks == "inf":
        problems.append(
            "model.predictor=memorizing: setting.num_tasks=inf has no tasks to memorise; give a "
            "number of tasks"
        )
    if isinstance(model, LLM):
        if not isinstance(setting, BallsAndUrns):
            problems.append(
                f"model=LLM reads setting=BallsAndUrns only, not {type(setting).__name__}"
            )
        elif model.words and len(model.words) != setting.num_dims:
            problems.append(
                f"model.words names {len(model.words)} words for setting.num_dims="
                f"{setting.num_dims} kinds of balls"
            )
    return problems
