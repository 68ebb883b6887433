"""Fine-tune a LoRA adapter on conversations.

    uv run scripts/sft.py examples_file=datasets/XXXX.examples.yaml
    uv run scripts/sft.py examples_file=chats.jsonl num_epochs=3 learning_rate=1e-4 dry_run=true
    uv run scripts/sft.py config_file=sft_config.yaml

Learns the assistants' messages (their end tokens included), or whole texts, and answers some of the
held-out examples in the end. Writes config.yaml, metrics.jsonl, samples.jsonl, checkpoints.jsonl,
checkpoints in PEFT's format and report.html under runs/sft/<run_id>/, or log_path; the same command
with that log_path goes on where the run stopped.
"""

import contextlib
import logging
import time
from pathlib import Path
from typing import Literal

import chz
from dotenv import load_dotenv

from training.adapt import mean_weighted
from training.api import AdamParams, TrainingClient
from training.checkpoint_folders import checkpoint_folder
from training.connect import BACKEND_DOC, NUM_ENGINES_DOC, Backend
from training.examples import Example, load_examples
from training.loop import (
    Recorder,
    connect_for_run,
    exit_on_interrupt,
    learning_rate_factor,
    require_models,
)
from training.models import context_length, load_tokenizer
from training.sft_adapter import make_trainer, model_problems, proven_sampler
from training.sft_report import closing_words, make_report
from training.sft_samples import ask, choose_questions
from training.supervised import Batch, heldout_loss, hold_out, make_plan, plan_table
from utils.config.entrypoint import (
    as_config_errors,
    config_entrypoint,
    held_log,
    problems_of,
    raise_problems,
)
from utils.config.help import EVALUATION, MODEL, OUTPUT, WHAT
from utils.config.ranges import range_problems
from utils.devices import DTYPE_DOC, Dtype
from utils.interrupts import uninterrupted
from utils.runs.files import expanded
from utils.runs.inputs import MUST_EXIST
from utils.runs.live_report import LiveReport
from utils.runs.progress import Stopwatch, progress
from utils.runs.run_dir import RunDir, new_run_path
from utils.runs.sinks import sink_factories

logger = logging.getLogger(__name__)


@chz.chz(typecheck=True)
class Config:
    examples_file: Path = chz.field(
        doc="a .examples.yaml, or JSONL of chats or instructions", metadata=MUST_EXIST | WHAT
    )
    labels: list[str] = chz.field(
        default_factory=lambda: ["positive"], doc="examples with another label are not learned"
    )
    train_on: Literal["all_assistant", "last_assistant", "all_tokens"] = chz.field(
        default="all_assistant", doc="which tokens of a conversation are learned"
    )
    template: Literal["auto", "role_colon"] = chz.field(
        default="auto", doc="the model's own chat template, or the plain form for base models"
    )
    max_length: int | None = chz.field(
        default=None, doc="longer examples are left out; default: the model's context"
    )
    seed: int = chz.field(default=0, doc="of the adapter, the order and the held-out examples")
    dry_run: bool = chz.field(default=False, doc="print the plan, and stop")

    model_name: str = chz.field(
        default="embedded", doc="embedded, a folder or a hub id", metadata=MODEL
    )
    # no Path: of tinker://... it would lose a slash
    checkpoint_path: str | None = chz.field(
        default=None,
        munger=lambda _, path: path if not path or "://" in path else str(expanded(path)),
        doc="an adapter to go on from, with a new optimizer; of a run's folder, the last",
    )
    backend: Backend = chz.field(default="local", doc=BACKEND_DOC)
    num_engines: int | None = chz.field(default=None, doc=NUM_ENGINES_DOC)
    base_url: str | None = chz.field(default=None, doc="server of backend=tinker")
    device: str | None = chz.field(
        default=None, doc="cpu or cuda; default: cuda where there is one"
    )
    dtype: Dtype | None = chz.field(default=None, doc=DTYPE_DOC)
    num_epochs: int = chz.field(default=2, doc="passes over the examples")
    batch_size: int | None = chz.field(default=None, doc="examples per step; default: 8")
    batch_tokens: int | None = chz.field(default=None, doc="tokens per step, instead of batch_size")
    learning_rate: float = chz.field(default=2e-4, doc="of Adam, at its highest")
    lr_schedule: Literal["constant", "linear", "cosine"] = chz.field(
        default="linear", doc="after the warm-up"
    )
    warmup_fraction: float = chz.field(default=0.05, doc="of the steps, in which the rate rises")
    grad_clip_norm: float = chz.field(default=1.0, doc="global norm; 0: off")
    weight_decay: float = chz.field(default=0.0, doc="of AdamW")
    lora_rank: int = chz.field(default=32, doc="of the adapter")
    lora_alpha: float | None = chz.field(default=None, doc="default: 32 (local only)")
    train_unembed: bool = chz.field(default=False, doc="adapt the output head too")

    heldout_fraction: float = chz.field(
        default=0.1,
        doc="of the examples, whole subtypes at a time; where none is marked held out",
        metadata=EVALUATION,
    )
    eval_every: int = chz.field(default=10, doc="steps between held-out losses; 0: start and end")
    num_samples: int = chz.field(
        default=4, doc="held-out examples that it answers at the end, for the report"
    )
    max_sample_tokens: int = chz.field(default=100, doc="of each such answer")

    log_path: Path | None = chz.field(
        default=None, doc="run directory; an existing one resumes", metadata=OUTPUT
    )
    save_every: int = chz.field(default=50, doc="steps between checkpoints; 0: only the last")
    keep_checkpoints: int = chz.field(default=2, doc="older ones are deleted; 0: keep all")
    sinks: list[str] = chz.field(default_factory=list, doc="wandb, tensorboard, trackio")

    @chz.validate
    def _check(self) -> None:
        problems = range_problems(
            self,
            at_least_1=(
                *("num_epochs", "batch_size", "batch_tokens", "lora_rank", "max_length"),
                "max_sample_tokens",
            ),
            at_least_0=("eval_every", "num_samples", "save_every", "keep_checkpoints", "seed"),
            below_1=("heldout_fraction", "warmup_fraction"),
            from_0=("learning_rate", "grad_clip_norm", "weight_decay"),
            above_0=("lora_alpha",),
        )
        if self.batch_size is not None and self.batch_tokens is not None:
            problems.append("batch_size and batch_tokens: give one of them")
        if self.backend == "tinker" and self.lora_alpha is not None:
            problems.append("lora_alpha: the tinker backend has a fixed alpha")
        raise_problems(problems)


def main(config: Config) -> None:
    load_dotenv()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    started = time.perf_counter()

    log_path = config.log_path or new_run_path("sft")
    may_change = ("sinks", "dry_run", "save_every", "keep_checkpoints")
    # resumed, a run goes on from a checkpoint of its own
    is_new = RunDir(log_path, resumed=True).last_checkpoint() is None
    started_from = config.checkpoint_path if is_new else None
    with contextlib.ExitStack() as stack:
        # everything that can be wrong; what only the loaded model tells comes last
        with held_log():
            with as_config_errors():
                service = connect_for_run(
                    log_path,
                    config.backend,
                    base_url=config.base_url,
                    device=config.device,
                    dtype=config.dtype,
                    num_engines=config.num_engines,
                )
                stack.enter_context(contextlib.closing(service))
                if started_from is not None:
                    started_from = checkpoint_folder(started_from)
            examples: list[Example] = []
            raise_problems(
                [
                    *model_problems(config, started_from),
                    *problems_of(
                        lambda: examples.extend(load_examples(config.examples_file, config.labels)),
                        lambda: sink_factories(config.sinks),
                    ),
                ]
            )
            with as_config_errors():
                train, held = hold_out(examples, config.heldout_fraction, config.seed)
                tokenizer = load_tokenizer(config.model_name)
                context = context_length(config.model_name)
                _, heldout_D, batches = plan = make_plan(config, train, held, tokenizer, context)
                questions = choose_questions(config, train, held, tokenizer, context)
            asked = f"{len(questions)} of at most {config.max_sample_tokens:,} tokens"
            table = plan_table(plan, config.num_epochs, config.eval_every, asked)
            if config.dry_run:
                print(f"\n{table}\n\nNothing was written.")
                return
            opened = RunDir.open(
                "sft", log_path, config, resume_fields_ignored=may_change, sinks=config.sinks
            )
            run = stack.enter_context(opened)
            stack.enter_context(exit_on_interrupt(run))
            adapters = {} if started_from is None else {"checkpoint_path": started_from}
            require_models(run, service, {"model_name": config.model_name}, adapters)
            recorder = Recorder(run)
            state = recorder.load()
            with as_config_errors():
                trainer = make_trainer(config, service, state.checkpoint, started_from)
        logger.info("\n%s", table)

        def evaluate() -> None:
            if heldout_D:
                loss = heldout_loss(trainer, heldout_D)
                run.log_metrics(state.step, {"heldout/loss": loss})
                logger.info("step %d: held-out loss %.4f nats per token", state.step, loss)
            state.evaluated = True

        live = LiveReport(
            run.path / "report.html",
            lambda: make_report(run.path, config),
            "step",
            lambda: state.step,
            len(batches),
        )
        try:
            with live, progress(len(batches), "sft", "step", initial=state.step) as bar:
                while True:
                    last = state.step == len(batches)
                    due = config.eval_every and state.step % config.eval_every == 0
                    due = due or last or state.step == 0
                    if due and not state.evaluated:
                        evaluate()
                    if last or (config.save_every and state.step % config.save_every == 0):
                        recorder.save(trainer, state, keep=config.keep_checkpoints)
                        due = True
                    if last:
                        break
                    if due:
                        live.refresh()
                    batch = batches[state.step]
                    with uninterrupted():
                        metrics = train_step(config, trainer, batch, state.step, len(batches))
                        state.step += 1
                        state.evaluated = False
                        run.log_metrics(state.step, metrics)
                    bar.update()
                    bar.add(tokens=batch.num_tokens, loss=metrics["train/loss"])
        except KeyboardInterrupt:
            recorder.save(trainer, state, keep=config.keep_checkpoints)
            raise
        assert state.checkpoint is not None
        if questions:
            sampler = proven_sampler(config, service, trainer, state.checkpoint, run.path)
            answers = ask(sampler, questions, tokenizer, config.template, config.max_sample_tokens)
            for answer in answers:
                run.log_sample(answer)
        report = live.finish()
    print(closing_words(config, state.checkpoint, report, time.perf_counter() - started))


def train_step(
    config: Config, trainer: TrainingClient, batch: Batch, step: int, num_steps: int
) -> dict[str, float]:
    """One update on the mean loss of the batch's trained tokens."""
    stopwatch = Stopwatch()
    warmup = round(config.warmup_fraction * num_steps)
    rate = config.learning_rate * learning_rate_factor(
        config.lr_schedule, step, num_steps, warmup_steps=warmup
    )
    adam = AdamParams(
        learning_rate=rate,
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        weight_decay=config.weight_decay,
        grad_clip_norm=config.grad_clip_norm,
    )
    with stopwatch("step"):
        loss = trainer.forward_backward(mean_weighted(batch.datums_D), "cross_entropy")
        update = trainer.optim_step(adam)
        metrics = {"train/loss": loss.result().metrics["loss:sum"], "learning_rate": rate}
        metrics |= {f"optim/{key}": v for key, v in (update.result().metrics or {}).items()}
    seconds = stopwatch.pop()["step"]
    return {
        **metrics,
        "tokens/trained": batch.num_tokens,
        "speed/trained_per_second": batch.num_tokens / seconds,
        "time/step": seconds,
    }


if __name__ == "__main__":
    config_entrypoint(main)
