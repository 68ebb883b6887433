"""Seconds of an epoch of supervised fine-tuning, against TRL's SFTTrainer: padded, packed, and
packed without padding.

    uv run --with 'trl>=1.16' benchmarks/sft_epoch.py
    uv run --with 'trl>=1.16' benchmarks/sft_epoch.py quick=true

All sides see the same sequences of tokens with the same ones to learn, from the same adapter.
Padded, TRL takes the engine's steps in the engine's order, and the mean losses of the rounds must
agree. Packed (`packing=true`, its strategy bfd, and padding_free where that applies), sequences are
joined up to `packed_tokens`, one such row a step, so that its steps are others: its seconds count,
not its loss. TRL is skipped where it cannot be imported. Appends to results/sft_epoch.jsonl.
"""

import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import chz
import numpy as np
from common import (
    DtypeSettings,
    Report,
    base_model,
    load_hf,
    local_service,
    prepare,
    random_tokens,
    synchronize,
    why_no_trl,
)
from trl_process import TrlProcess

from training.adapt import mean_weighted
from training.api import AdamParams, Datum, ModelInput
from training.models import load_tokenizer
from utils.runs.progress import progress

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

LEARNING_RATE = 1e-4
# TRL's defaults, as far as the engine has the setting
ADAM = AdamParams(learning_rate=LEARNING_RATE, beta2=0.999, eps=1e-8, grad_clip_norm=1.0)
# Of the mean losses of an epoch, relative
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}
Way = Literal["padded", "packed"]
NAMES: dict[Way, str] = {"padded": "TRL SFTTrainer, padded", "packed": "TRL SFTTrainer, packed"}


@chz.chz(typecheck=True)
class Config(DtypeSettings):
    repeats: int = chz.field(default=2, doc="timed epochs; tables show their median")
    num_examples: int = chz.field(default=48, doc="in the epoch")
    batch_size: int = chz.field(default=8, doc="examples per step, of the engine and padded")
    min_tokens: int = chz.field(default=40, doc="shortest example")
    max_tokens: int = chz.field(default=320, doc="longest example")
    learned: float = chz.field(default=0.6, doc="share of an example's tokens that are learned")
    packed_tokens: int = chz.field(default=1024, doc="length of TRL's packed rows")
    rank: int = chz.field(default=16, doc="LoRA rank on attention and MLP layers")
    trl: bool = chz.field(default=True, doc="compare with TRL, where it can be imported")

    @chz.validate
    def _lengths(self) -> None:
        if self.num_examples % self.batch_size:
            raise ValueError(
                f"num_examples={self.num_examples}: not a multiple of batch_size={self.batch_size}"
            )


QUICK = {
    "num_examples": 4,
    "batch_size": 2,
    "min_tokens": 6,
    "max_tokens": 16,
    "packed_tokens": 32,
    "rank": 4,
}
# token ids, and how many of the last ones are learned
Example = tuple[list[int], int]


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = prepare(config, QUICK)
    assert config.dtype is not None
    report = Report("sft_epoch", config)
    with base_model(config) as name:
        worst = epoch_rows(report, name, config)
    report.finish()
    if worst > TOLERANCES[config.dtype]:
        raise SystemExit(f"losses differ by {worst:.3g}, relative")


def epoch_rows(report: Report, name: str, config: Config) -> float:
    """Times epochs, in turn; the largest relative difference of the padded way's mean loss."""
    with local_service(config, dtype=config.dtype) as service:
        client = service.create_lora_training_client(
            name, rank=config.rank, seed=0, train_unembed=False
        )
        examples = make_examples(config, service.engine(name).decoder.vocab_size)
        adapter = client.save_weights_for_sampler("start").result().path
        rivals: dict[str, TrlProcess] = {}
        reason = why_no_trl(name, config.trl, config)
        if reason is None:
            for way in NAMES:
                rivals[NAMES[way]] = TrlProcess(run_trl, way, name, Path(adapter), examples, config)
        else:
            report.note(f"TRL: skipped, {reason}")
        seconds: dict[str, list[float]] = {key: [] for key in ("engine", *rivals)}
        worst = 0.0
        try:
            rounds = config.warmup + config.repeats
            with progress(rounds, "epochs", "epoch") as bar:
                for number in range(rounds):
                    taken, loss = engine_epoch(client, examples, config)
                    found = {"engine": taken}
                    for key, rival in rivals.items():
                        found[key], other = rival.turn()
                        if key == NAMES["padded"]:
                            worst = max(worst, abs(other - loss) / loss)
                    if number >= config.warmup:
                        for key, value in found.items():
                            seconds[key].append(value)
                    bar.update(1)
        finally:
            for rival in rivals.values():
                rival.end()
    tokens = sum(len(tokens) for tokens, _ in examples)
    for key, times in seconds.items():
        goal = None if key == "engine" else 1.0
        report.add("epoch", key, seconds=times, tokens=tokens, against=seconds["engine"], goal=goal)
    if rivals:
        report.note(f"Mean losses of the engine and of TRL padded: {worst:.2g} apart (relative)")
    return worst


def make_examples(config: Config, vocab_size: int) -> list[Example]:
    """Of random tokens and lengths; nothing is shared, so that sharing gains nothing here."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(config.min_tokens, config.max_tokens + 1, config.num_examples)
    return [
        (random_tokens(rng, int(n), vocab_size), max(1, int(config.learned * n))) for n in lengths
    ]


def batches_of(examples: Sequence[Example], config: Config) -> list[Sequence[Example]]:
    size = config.batch_size
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def engine_epoch(client: Any, examples: Sequence[Example], config: Config) -> tuple[float, float]:
    """Seconds, and the mean of the steps' losses per learned token."""
    synchronize(config.device)
    started = time.perf_counter()
    losses = []
    for batch in batches_of(examples, config):
        loss = client.forward_backward(mean_weighted([_datum(e) for e in batch]), "cross_entropy")
        client.optim_step(ADAM).result()
        losses.append(loss.result().metrics["loss:sum"])
    synchronize(config.device)
    return time.perf_counter() - started, float(np.mean(losses))


def _datum(example: Example) -> Datum:
    tokens, learned = example
    weights = np.zeros(len(tokens) - 1, dtype=np.float32)
    weights[-learned:] = 1
    inputs = {"target_tokens": tokens[1:], "weights": weights}
    return Datum(ModelInput.from_ints(tokens[:-1]), inputs)


# -------------------------------------------------------------------------------------------- TRL


def run_trl(
    turns: "Connection",
    way: Way,
    name: str,
    adapter: Path,
    examples: Sequence[Example],
    config: Config,
) -> None:
    """Sends seconds and mean loss of every epoch, each after it was told to go on."""
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer  # pyrefly: ignore[missing-import]

    if config.threads is not None:
        torch.set_num_threads(config.threads)

    class TakeTurns(TrainerCallback):
        def on_epoch_begin(self, *_arguments: Any, **_keywords: Any) -> None:
            turns.recv()
            self._losses: list[float] = []
            synchronize(config.device)
            self._started = time.perf_counter()

        def on_log(self, *_arguments: Any, **keywords: Any) -> None:
            if "loss" in keywords["logs"]:
                self._losses.append(keywords["logs"]["loss"])

        def on_epoch_end(self, *_arguments: Any, **_keywords: Any) -> None:
            synchronize(config.device)
            turns.send((time.perf_counter() - self._started, float(np.mean(self._losses))))

    model = PeftModel.from_pretrained(
        load_hf(name, config.device, config.dtype), str(adapter), is_trainable=True
    )
    packed = way == "packed"
    with tempfile.TemporaryDirectory(prefix="trl-") as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                use_cpu=config.device == "cpu",
                bf16=config.dtype == "bfloat16",
                per_device_train_batch_size=1 if packed else config.batch_size,
                packing=packed,
                max_length=config.packed_tokens,
                completion_only_loss=True,
                num_train_epochs=config.warmup + config.repeats,
                gradient_checkpointing=False,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                train_sampling_strategy="sequential",
                logging_strategy="steps",
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=0,
            ),
            train_dataset=Dataset.from_list([_row(example) for example in examples]),
            processing_class=load_tokenizer(name),
            callbacks=[TakeTurns()],
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        except EOFError:
            # the other side has what it wanted, or failed
            return


def _row(example: Example) -> dict[str, Any]:
    tokens, learned = example
    mask = [0] * (len(tokens) - learned) + [1] * learned
    return {"input_ids": tokens, "completion_mask": mask}


if __name__ == "__main__":
    chz.nested_entrypoint(main)
