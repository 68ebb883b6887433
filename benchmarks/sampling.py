"""Tokens per second of a group of samples after one prompt, against generate() and vLLM.

    uv run benchmarks/sampling.py
    uv run --with vllm benchmarks/sampling.py model=random_1b device=cuda
    uv run benchmarks/sampling.py parts=profile
    uv run benchmarks/sampling.py quick=true

No side stops at an end token, so every answer has the same length, which is checked. Every round
has a new prompt: nobody's prompt cache helps. The engine also returns the samples' logprobs, which
are compared with those of transformers. vLLM is skipped where it cannot be imported. parts=profile
says where the milliseconds of a step go, of 1 and of num_samples rows, with an adapter and without.
Appends to benchmarks/results/sampling.jsonl.
"""

import logging
import os
from collections.abc import Callable
from typing import Any

import chz
import numpy as np
from common import (
    DtypeSettings,
    Report,
    base_model,
    importable,
    load_hf,
    local_service,
    on_worker,
    prepare,
    race,
    random_tokens,
)
from decode_profile import add_profile

from training.api import ModelInput, SampleResponse, SamplingClient, SamplingParams
from training.models import resolve_model

# Nats between the engine's and transformers' logprobs of a sampled token: the largest in float32,
# the root mean square in bf16.
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}
GOAL = 4.0
PARTS = ("speed", "profile")


@chz.chz(typecheck=True)
class Config(DtypeSettings):
    prompt_tokens: int = chz.field(default=256, doc="length of the prompt")
    num_samples: int = chz.field(default=16, doc="answers to it")
    max_tokens: int = chz.field(default=64, doc="length of every answer")
    vllm: bool = chz.field(default=True, doc="compare with vLLM too, where it can be imported")
    parts: list[str] = chz.field(
        default_factory=lambda: ["speed"], doc="speed, profile (of a decode step), or both"
    )

    @chz.validate
    def _parts(self) -> None:
        if unknown := sorted(set(self.parts) - set(PARTS)):
            raise ValueError(f"parts={unknown}: allowed are {', '.join(PARTS)}")


QUICK = {"prompt_tokens": 20, "num_samples": 3, "max_tokens": 5}


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = prepare(config, QUICK)
    if "profile" in config.parts:
        profile(config)
    if "speed" in config.parts:
        speed(config)


def profile(config: Config) -> None:
    report = Report("sampling", config)
    rows_of = sorted({1, config.num_samples})
    with base_model(config) as name, local_service(config, dtype=config.dtype) as service:
        add_profile(report, service, name, rows_of=rows_of, prompt_tokens=config.prompt_tokens)
    report.finish()


def speed(config: Config) -> None:
    assert config.device is not None and config.dtype is not None
    report = Report("sampling", config)
    with base_model(config) as name, local_service(config, dtype=config.dtype) as service:
        client = service.create_sampling_client(base_model=name)
        decoder = service.engine(name).decoder
        model = on_worker(service, name, lambda: load_hf(name, config.device, config.dtype))
        rng = np.random.default_rng(0)
        prompts = [
            random_tokens(rng, config.prompt_tokens, decoder.vocab_size)
            for _ in range(config.warmup + config.repeats)
        ]
        response = engine_sample(client, prompts[0], config)
        difference = on_worker(
            service, name, lambda: logprob_difference(response, model, prompts[0], config)
        )
        contenders: dict[str, Callable[[int], object]] = {
            "engine": lambda r: engine_sample(client, prompts[r], config),
            "transformers generate()": lambda r: on_worker(
                service, name, lambda: generate(model, prompts[r], config)
            ),
        }
        if config.vllm and importable("vllm"):
            vllm_sample = make_vllm(name, config)
            contenders["vLLM"] = lambda r: vllm_sample(prompts[r])
        else:
            reason = "it is not installed" if config.vllm else "vllm=false"
            report.note(f"vLLM: skipped, {reason}")
        seconds = race(contenders, config, "sampling")

    for contender in contenders:
        report.add(
            f"{config.num_samples} x {config.max_tokens} tokens after {config.prompt_tokens}",
            contender,
            seconds=seconds[contender],
            tokens=config.num_samples * config.max_tokens,
            against=seconds["engine"],
            goal=GOAL if "generate" in contender else None,
        )
    report.note("ratio: seconds of the row over the engine's.")
    report.note(f"Sampled tokens' logprobs, engine and transformers: {difference:.2g} nats apart")
    report.finish()
    if difference > TOLERANCES[config.dtype]:
        raise SystemExit(f"logprobs differ by {difference:.3g} nats: not the same distribution")


def engine_sample(client: SamplingClient, prompt: list[int], config: Config) -> SampleResponse:
    params = SamplingParams(max_tokens=config.max_tokens, stop=[])
    response = client.sample(ModelInput.from_ints(prompt), config.num_samples, params).result()
    _check_lengths([len(sequence.tokens_np) for sequence in response.sequences], config)
    return response


def generate(model: Any, prompt: list[int], config: Config) -> None:
    import torch

    tokens = torch.tensor([prompt], device=config.device)
    out = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        num_return_sequences=config.num_samples,
        max_new_tokens=config.max_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        eos_token_id=None,
        pad_token_id=0,
    )
    _check_lengths([out.shape[1] - len(prompt)] * out.shape[0], config)


def make_vllm(name: str, config: Config) -> Callable[[list[int]], None]:
    """Samples with vLLM, which runs in a process of its own; it returns logprobs too."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    import vllm  # pyrefly: ignore[missing-import]

    llm = vllm.LLM(
        model=str(resolve_model(name)),
        dtype=config.dtype,
        max_model_len=config.prompt_tokens + config.max_tokens,
        max_num_seqs=config.num_samples,
        gpu_memory_utilization=0.5,
        skip_tokenizer_init=True,
        seed=0,
    )
    params = vllm.SamplingParams(
        n=config.num_samples,
        max_tokens=config.max_tokens,
        temperature=1.0,
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
    )

    def sample(prompt: list[int]) -> None:
        (output,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        _check_lengths([len(answer.token_ids) for answer in output.outputs], config)

    return sample


def _check_lengths(lengths: list[int], config: Config) -> None:
    if lengths != [config.max_tokens] * config.num_samples:
        raise RuntimeError(
            f"answers have {lengths} tokens; {config.num_samples} of {config.max_tokens} are wanted"
        )


def logprob_difference(
    response: SampleResponse, model: Any, prompt: list[int], config: Config
) -> float:
    """Between the engine's logprobs of a few samples and those of transformers' forward pass."""
    import torch

    sequences = response.sequences[:2]
    rows = torch.tensor([prompt + s.tokens for s in sequences], device=config.device)
    with torch.no_grad():
        logits = model(rows, use_cache=False).logits[:, len(prompt) - 1 : -1].float()
    chosen = rows[:, len(prompt) :].unsqueeze(-1)
    expected = logits.log_softmax(-1).gather(-1, chosen).squeeze(-1).cpu().numpy()
    difference = np.array([s.logprobs for s in sequences]) - expected
    if config.device == "cuda":
        return float(np.sqrt((difference**2).mean()))
    return float(np.abs(difference).max())


if __name__ == "__main__":
    chz.nested_entrypoint(main)
