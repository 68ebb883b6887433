"""Seconds of a GRPO update with and without prompt sharing, and of a whole GRPO step against TRL.

    uv run benchmarks/grpo_update.py
    uv run --with 'trl>=1.16' benchmarks/grpo_update.py
    uv run --with 'trl>=1.16' benchmarks/grpo_update.py quick=true

The update is forward_backward and optim_step on one group whose answers share their prompt; the two
gradients are compared. The whole step samples the group, rewards it and updates; TRL's GRPOTrainer
does the same with transformers' generate(), no KL term, no checkpointing of activations, the same
LoRA and no end token before the last. TRL is skipped where it cannot be imported. Appends to
benchmarks/results/grpo_update.jsonl.
"""

import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chz
import numpy as np
from common import (
    ALPHA,
    DtypeSettings,
    Report,
    base_model,
    flat_gradient,
    load_hf,
    local_service,
    prepare,
    race,
    random_tokens,
    randomise_adapters,
    synchronize,
    why_no_trl,
)
from trl_process import TrlProcess

from training.api import AdamParams, Datum, ModelInput, SamplingParams
from training.models import load_tokenizer
from training.rl.updates import Trajectory, centred_advantages, policy_datum
from utils.runs.progress import progress

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

LEARNING_RATE = 1e-5
# TRL's defaults, as far as the engine has the setting
ADAM = AdamParams(learning_rate=LEARNING_RATE, beta2=0.999, eps=1e-8, grad_clip_norm=1.0)
# Largest difference of the gradients over the largest gradient; bf16 rounds each layer's output.
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}
TEXT = (
    "A grid of coloured cells is given, and the rule that changes it must be found. "
    "Row {0} has {1} blue cells, {2} red cells and {3} that stay empty. "
)


@chz.chz(typecheck=True)
class Config(DtypeSettings):
    prompt_tokens: int = chz.field(default=256, doc="length of the prompt")
    group_size: int = chz.field(default=8, doc="answers to it")
    max_tokens: int = chz.field(default=64, doc="length of every answer")
    rank: int = chz.field(default=16, doc="LoRA rank on attention and MLP layers")
    trl: bool = chz.field(default=True, doc="compare with TRL too, where it can be imported")


QUICK = {"prompt_tokens": 24, "group_size": 4, "max_tokens": 4, "rank": 4}


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = prepare(config, QUICK)
    assert config.device is not None and config.dtype is not None
    report = Report("grpo_update", config)
    with base_model(config) as name:
        worst = update_rows(report, name, config)
        step_rows(report, name, config)
    report.note(f"Gradients with and without sharing: {worst:.2g} of the largest apart")
    report.finish()
    if worst > TOLERANCES[config.dtype]:
        raise SystemExit(f"gradients differ by {worst:.3g} of the largest")


# ---------------------------------------------------------------------------------------- update


def update_rows(report: Report, name: str, config: Config) -> float:
    """Times the update alone; the largest difference of the gradients over the largest gradient."""
    with (
        local_service(config, dtype=config.dtype, share_prompts=True) as shared,
        local_service(config, dtype=config.dtype, share_prompts=False) as plain,
    ):
        clients = {
            contender: service.create_lora_training_client(
                name, rank=config.rank, seed=0, train_unembed=False
            )
            for contender, service in (("prompt shared", shared), ("prompt repeated", plain))
        }
        randomise_adapters(list(clients.values()), seed=1)
        vocab_size = shared.engine(name).decoder.vocab_size
        prompt = random_tokens(np.random.default_rng(0), config.prompt_tokens, vocab_size)
        datums = sample_group(clients["prompt shared"], prompt, config, reward_even)

        gradients = []
        for client in clients.values():
            client.forward_backward(datums, "importance_sampling").result()
            gradients.append(flat_gradient(client))
            client.optim_step(AdamParams(learning_rate=0.0)).result()
        worst = float(np.abs(gradients[0] - gradients[1]).max() / np.abs(gradients[1]).max())

        seconds = race(
            {
                contender: lambda _round, c=client: update(c, datums)
                for contender, client in clients.items()
            },
            config,
            "updating",
        )
    for contender, times in seconds.items():
        report.add(
            "update",
            contender,
            seconds=times,
            tokens=config.group_size * config.max_tokens,
            against=seconds["prompt shared"],
            goal=2.5 if contender == "prompt repeated" else None,
        )
    return worst


def update(client: Any, datums: list[Datum]) -> None:
    loss = client.forward_backward(datums, "importance_sampling")
    client.optim_step(ADAM).result()
    loss.result()


def sample_group(
    client: Any,
    prompt: list[int],
    config: Config,
    reward: Callable[[Sequence[Sequence[int]]], list[float]],
) -> list[Datum]:
    """Answers of the client's current weights with group-normalised advantages, as TRL has them;
    the loss is a mean over the group's tokens."""
    sampler = client.save_weights_and_get_sampling_client().result()
    params = SamplingParams(max_tokens=config.max_tokens, stop=[])
    response = sampler.sample(ModelInput.from_ints(prompt), config.group_size, params).result()
    trajectories = [Trajectory.of(prompt, sequence) for sequence in response.sequences]
    rewards_G = reward([t.tokens_T for t in trajectories])
    (advantages_G,) = centred_advantages([rewards_G])
    if advantages_G is None:
        advantages_G = np.zeros(len(rewards_G))
    total = sum(len(t.tokens_T) for t in trajectories)
    scale = 1 / (total * (np.std(rewards_G, ddof=1) + 1e-4))
    return [
        policy_datum(t, np.full(len(t.tokens_T), advantage * scale))
        for t, advantage in zip(trajectories, advantages_G, strict=True)
    ]


def reward_even(answers_G: Sequence[Sequence[int]]) -> list[float]:
    """The share of even token ids: cheap, and different from answer to answer."""
    return [float(np.mean(np.asarray(tokens) % 2 == 0)) for tokens in answers_G]


# ------------------------------------------------------------------------------------ whole step


def step_rows(report: Report, name: str, config: Config) -> None:
    """Times whole GRPO steps, in turn with TRL's where it can be imported."""
    reason = why_no_trl(name, config.trl, config)
    with local_service(config, dtype=config.dtype) as service:
        client = service.create_lora_training_client(
            name, rank=config.rank, seed=0, train_unembed=False
        )

        def engine_step(prompt: list[int]) -> None:
            update(client, sample_group(client, prompt, config, reward_even))

        if reason is None:
            # TRL takes text
            prompt, text = prompt_of(load_tokenizer(name), config.prompt_tokens)
            folder = client.save_weights_for_sampler("start").result().path
            seconds = race_trl(lambda: engine_step(prompt), text, name, Path(folder), config)
        else:
            report.note(f"TRL: skipped, {reason}")
            vocab_size = service.engine(name).decoder.vocab_size
            prompt = random_tokens(np.random.default_rng(0), config.prompt_tokens, vocab_size)
            seconds = race({"engine": lambda _round: engine_step(prompt)}, config, "GRPO steps")
    for contender, times in seconds.items():
        report.add(
            "whole step",
            contender,
            seconds=times,
            tokens=config.group_size * config.max_tokens,
            against=seconds["engine"],
            goal=4.0 if contender != "engine" else None,
        )


def prompt_of(tokenizer: Any, length: int) -> tuple[list[int], str]:
    """A text of exactly `length` tokens, and those."""
    rng = np.random.default_rng(0)
    text = "".join(TEXT.format(*rng.integers(0, 10, 4)) for _ in range(1 + length // 16))
    tokens = tokenizer(text)["input_ids"]
    # a cut may fall inside a word, which then reads back as other tokens
    for size in range(length, len(tokens)):
        cut = tokenizer.decode(tokens[:size], skip_special_tokens=True)
        if len(back := tokenizer(cut)["input_ids"]) == length:
            return back, cut
    raise RuntimeError(f"found no text of {length} tokens")


def race_trl(
    engine_step: Callable[[], None], text: str, name: str, adapter: Path, config: Config
) -> dict[str, list[float]]:
    """Seconds per step of the engine and of TRL, in turn."""
    seconds: dict[str, list[float]] = {"engine": [], "TRL GRPOTrainer": []}
    num_steps = config.warmup + config.repeats
    rival = TrlProcess(run_trl, text, name, adapter, config)
    try:
        with progress(num_steps, "GRPO steps", "step") as bar:
            for number in range(num_steps):
                trl_seconds = rival.turn()
                synchronize(config.device)
                started = time.perf_counter()
                engine_step()
                synchronize(config.device)
                if number >= config.warmup:
                    seconds["engine"].append(time.perf_counter() - started)
                    seconds["TRL GRPOTrainer"].append(trl_seconds)
                bar.update(1)
        lengths = rival.turn()
    finally:
        rival.end()
    if lengths != {config.max_tokens}:
        raise RuntimeError(f"TRL's answers have {sorted(lengths)} tokens")
    return seconds


def run_trl(turns: "Connection", text: str, name: str, adapter: Path, config: Config) -> None:
    """Sends the seconds of every step, each in its turn; last, the answers' lengths."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # pyrefly: ignore[missing-import]

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    num_steps = config.warmup + config.repeats
    rewarded: set[int] = set()

    def reward(completion_ids: list[list[int]], **_columns: Any) -> list[float]:
        rewarded.update(len(tokens) for tokens in completion_ids)
        return reward_even(completion_ids)

    class TakeTurns(TrainerCallback):
        def on_step_begin(self, *_arguments: Any, **_keywords: Any) -> None:
            turns.recv()
            synchronize(config.device)
            self._started = time.perf_counter()

        def on_step_end(self, *_arguments: Any, **_keywords: Any) -> None:
            synchronize(config.device)
            turns.send(time.perf_counter() - self._started)

    on_cpu = config.device == "cpu"
    targets = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    with tempfile.TemporaryDirectory(prefix="trl-") as folder:
        trainer = GRPOTrainer(
            model=load_hf(name, config.device, config.dtype),
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=folder,
                use_cpu=on_cpu,
                bf16=config.dtype == "bfloat16",
                per_device_train_batch_size=config.group_size,
                num_generations=config.group_size,
                max_completion_length=config.max_tokens,
                generation_kwargs={"min_new_tokens": config.max_tokens},
                max_steps=num_steps,
                beta=0.0,
                gradient_checkpointing=False,
                disable_dropout=True,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                logging_strategy="no",
                save_strategy="no",
                eval_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=0,
            ),
            train_dataset=Dataset.from_list([{"prompt": text}] * num_steps),
            processing_class=load_tokenizer(name),
            peft_config=LoraConfig(
                r=config.rank,
                lora_alpha=int(ALPHA),
                lora_dropout=0.0,
                target_modules=targets,
                task_type="CAUSAL_LM",
            ),
            callbacks=[TakeTurns()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    turns.recv()
    turns.send(rewarded)


if __name__ == "__main__":
    chz.nested_entrypoint(main)
