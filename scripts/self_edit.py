"""One ARC self-edit from prompt to result, on the screen: the task, what the model writes, what
that expands to, the training, and the answers before and after.

    uv run scripts/self_edit.py task_id=25ff71a9
    uv run scripts/self_edit.py task_id=25ff71a9 model_name=path/to/model grid_format=numpy
    uv run scripts/self_edit.py task_id=25ff71a9 answer='{"data_generation": ...}'

Writes no files. All settings of scripts/rl_loop.py domain=arc can be given.
"""

import contextlib
import logging
import sys
from typing import Any

import chz
from dotenv import load_dotenv

from training.connect import (
    BACKEND_DOC,
    NUM_ENGINES_DOC,
    SAMPLING_WEIGHTS_DOC,
    Backend,
    SamplingWeights,
    connect,
    has_own_engines,
)
from training.domains.arc.config import ArcConfig
from training.domains.arc.domain import ArcDomain
from training.domains.arc.examples import ExampleSet
from training.domains.arc.report import describe
from training.domains.arc.self_edit import SelfEdit, SelfEditError, parse_self_edit
from training.domains.arc.tasks import Pair, Task, load_tasks
from training.domains.arc.voting import UNDECODABLE
from training.domains.base import Problem
from training.domains.checks import check_with_model
from training.models import check_sampling_weights
from training.rl.policy import Policy
from training.rl.problems import PromptLimit, choose_problems
from utils.config.entrypoint import ConfigError, as_config_errors, config_entrypoint, held_log
from utils.config.help import MODEL, SAMPLING, WHAT
from utils.devices import DTYPE_DOC, Dtype
from utils.runs.tables import text_table
from utils.runs.terminal_grids import side_by_side, terminal_grid

logger = logging.getLogger(__name__)


@chz.chz(typecheck=True)
class Config(ArcConfig):
    task_id: str = chz.field(doc="an ARC-AGI-1 or 2 task", metadata=WHAT)
    answer: str | None = chz.field(default=None, doc="the self-edit; default: the model writes it")
    num_shown: int = chz.field(default=3, doc="training examples that are drawn")

    backend: Backend = chz.field(default="local", doc=BACKEND_DOC, metadata=MODEL)
    num_engines: int | None = chz.field(default=None, doc=NUM_ENGINES_DOC)
    base_url: str | None = chz.field(default=None, doc="server of backend=tinker")
    device: str | None = chz.field(
        default=None, doc="cpu or cuda; default: cuda where there is one"
    )
    dtype: Dtype | None = chz.field(default=None, doc=DTYPE_DOC)
    sampling_weights: SamplingWeights | None = chz.field(default=None, doc=SAMPLING_WEIGHTS_DOC)

    temperature: float = chz.field(
        default=1.0, doc="of the self-edit that the model writes", metadata=SAMPLING
    )


def heading(text: str) -> None:
    print(f"\n── {text} {'─' * max(0, 76 - len(text))}\n")


def draw_pair(pair: Pair, label: str) -> str:
    output = None if pair.output is None else pair.output.tolist()
    blocks = [terminal_grid(pair.input.tolist()), "\n→", terminal_grid(output)]
    return f"{label}\n{side_by_side(blocks)}"


def draw_answers(task: Task, outcomes: dict[str, dict[str, Any] | None]) -> str:
    """Per test: input, right output, and each outcome's attempts with their wrong cells marked."""
    lines = []
    for t, pair in enumerate(task.test):
        expected = None if pair.output is None else pair.output.tolist()
        labels = [f"test {t + 1}", "right"]
        blocks = [terminal_grid(pair.input.tolist()), terminal_grid(expected)]
        for name, outcome in outcomes.items():
            if outcome is not None:
                for grid in outcome["attempts"][t]:
                    labels.append(name)
                    shown = None if grid == UNDECODABLE.tolist() else grid
                    blocks.append(terminal_grid(shown, expected=expected))
        lines.append(side_by_side(blocks, labels=labels))
    return "\n\n".join(lines)


def show_expansion(examples: ExampleSet, edit: SelfEdit, num_shown: int) -> None:
    print(describe(edit), end="\n\n")
    counts = [*examples.counts.items(), ("in all", len(examples.tasks))]
    print(text_table(("made by", "examples"), counts))
    print(
        f"\n{examples.num_generated} were generated, {examples.num_too_long} of them too long; "
        f"the first {min(num_shown, len(examples.tasks))} (each has further pairs as context):"
    )
    for number, example in enumerate(examples.tasks[:num_shown], start=1):
        print(f"\n{draw_pair(example.test[0], f'example {number}')}")


def write_self_edit(policy: Policy, domain: ArcDomain, problem: Problem, temperature: float) -> str:
    """The model's self-edit, or a ConfigError that says what is wrong with it."""
    [[trajectory]] = policy.answers([problem], size=1, temperature=temperature, key=("self_edit",))
    if (reason := domain.invalid(trajectory.text)) is not None:
        raise ConfigError(f"the model wrote no self-edit: {reason}; try another seed")
    return trajectory.text


def main(config: Config) -> None:
    load_dotenv()
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    with contextlib.ExitStack() as stack:
        with held_log(), as_config_errors():
            if has_own_engines(config.backend):
                check_sampling_weights(config.model_name, config.sampling_weights)
            service = connect(
                config.backend,
                base_url=config.base_url,
                device=config.device,
                dtype=config.dtype,
                num_engines=config.num_engines,
                sampling_weights=config.sampling_weights,
            )
            stack.enter_context(contextlib.closing(service))
            [task] = load_tasks([config.task_id])
            domain = ArcDomain(config, service)
            problem = domain.problem(task)
            if config.answer is not None and config.mode == "self_edit":
                # as far as its number of steps
                domain.loop.job(task, parse_self_edit(config.answer, config.bounds))
            choose_problems([problem], "tasks", PromptLimit.of(config, service, domain))
            policy = Policy(
                service.create_lora_training_client(config.model_name, rank=1, seed=0),
                domain,
                enforce_schema=has_own_engines(config.backend),
                max_resamples=3,
                seed=config.seed,
            )
            check_with_model(domain)

        heading(f"Task {task.id}")
        for number, pair in enumerate(task.train, start=1):
            print(draw_pair(pair, f"demonstration {number}"), end="\n\n")
        for number, pair in enumerate(task.test, start=1):
            print(draw_pair(pair, f"test {number}"), end="\n\n")

        heading("Prompt")
        for message in problem.messages:
            print(f"[{message['role']}] {message['content']}")

        if config.answer is None:
            heading(f"Self-edit, written by {config.model_name}")
            answer = write_self_edit(policy, domain, problem, config.temperature)
        else:
            heading("Self-edit, given")
            answer = config.answer
        print(answer)

        heading("What it expands to")
        try:
            edit = parse_self_edit(answer, domain.bounds)
            show_expansion(domain.loop.examples(task, edit), edit, config.num_shown)
            job = domain.loop.job(task, edit)
        except SelfEditError as error:
            raise ConfigError(str(error)) from error
        steps = job.num_steps(domain.loop.settings.adapt.batch_size)
        print(f"\n{steps} steps, {job.num_tokens:,} tokens to train on")

        heading("Training, and the answers before and after")
        domain.look_up_base([problem])
        [[reward]] = domain.rewards([problem], [[answer]])
        outcomes = {
            "before": domain.outcome(problem, None),
            "after": domain.outcome(problem, answer),
        }
        print(f"\n{draw_answers(task, outcomes)}\n")
        rows = [
            (name, "yes" if outcome["solved"] else "no", f"{outcome['cell_accuracy']:.0%}")
            for name, outcome in outcomes.items()
            if outcome is not None
        ]
        print(text_table(("", "solved", "right cells"), rows))
        print(f"\nreward {reward.value:.2f} ({config.reward_kind}): {reward.note}")


if __name__ == "__main__":
    config_entrypoint(main, sys.argv[1:])
