"""What a start costs besides reading weights: the comparison with the model's own code, once for a
model, and the proof that the adapter is what answers, once a run.

    uv run benchmarks/starting.py
    uv run benchmarks/starting.py quick=true

"compared" and "known" open the model through transformers, without and with the note of an earlier
start: their difference is the comparison. A run's sampler reads its first prompts with and without
the proof, which goes along with them. Appends to benchmarks/results/starting.jsonl.
"""

import logging
import os
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import chz
import numpy as np
from common import (
    Report,
    Settings,
    base_model,
    local_service,
    prepare,
    race,
    random_tokens,
    randomise_adapters,
)

from training.adapter_proof import AdapterProof
from training.api import ModelInput, SamplingClient, SamplingParams
from training.models import resolve_model


@chz.chz(typecheck=True)
class Config(Settings):
    rank: int = chz.field(default=32, doc="LoRA rank")
    prompts: int = chz.field(default=4, doc="that a sampler reads first")
    prompt_tokens: int = chz.field(
        default=60, doc="of each; 64 leave no room for the rows of the proof in the same pass"
    )


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = prepare(config, {"rank": 4, "prompts": 2, "prompt_tokens": 8})
    report = Report("starting", config)
    with base_model(config) as name:
        # a thread that has ended holds no OpenMP threads beside the engine's
        with ThreadPoolExecutor(max_workers=1) as worker:
            worker.submit(opening, report, config, resolve_model(name)).result()
        with local_service(config) as service:
            proving(report, config, service, name)
    report.finish()


def opening(report: Report, config: Config, source: str | Path) -> None:
    import torch

    from training.backends.local.decoder import Decoder
    from training.backends.local.notes import notes_file

    device = torch.device(config.device or "cpu")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as cache:
        # under another name the embedded model is a user's, and notes are not in the user's cache
        folder = Path(cache) / "model"
        folder.symlink_to(Path(source).resolve())
        before = os.environ.get("AUTODIDACT_CACHE")
        os.environ["AUTODIDACT_CACHE"] = cache

        def compared(_number: int) -> None:
            notes_file().unlink(missing_ok=True)
            Decoder(folder, device)

        contenders = {"compared": compared, "known": lambda _number: Decoder(folder, device)}
        seconds = race(contenders, config, "opening")
        os.environ.pop("AUTODIDACT_CACHE")
        if before is not None:
            os.environ["AUTODIDACT_CACHE"] = before
    contenders = {"at its own place": lambda _number: Decoder(source, device)}
    seconds |= race(contenders, config, "opening")
    for contender, rounds in seconds.items():
        report.add("open", contender, seconds=rounds)
    report.note(f"The comparison: {_more(seconds['compared'], seconds['known']):.0f} ms")


def proving(report: Report, config: Config, service: Any, name: str) -> None:
    trainer = service.create_lora_training_client(name, rank=config.rank, seed=0)
    randomise_adapters([trainer], seed=0)
    path = trainer.save_state("proven").result().path

    vocab_size = service.engine(name).decoder.vocab_size
    rng = np.random.default_rng(0)
    prompts_P = [
        random_tokens(rng, config.prompt_tokens, vocab_size) for _ in range(config.prompts)
    ]
    params = SamplingParams(max_tokens=1, seed=0, stop=[])

    def answers(client: SamplingClient) -> None:
        futures = [client.sample(ModelInput.from_ints(prompt), 1, params) for prompt in prompts_P]
        for future in futures:
            future.result()

    def sampler(_number: int) -> None:
        answers(trainer.save_weights_and_get_sampling_client().result())

    def proven(_number: int) -> None:
        answers(AdapterProof(service, name, with_answers=True).sampler(trainer, "the adapter"))

    def alone(_number: int) -> None:
        answers(AdapterProof(service, name).sampler(trainer, "the adapter"))

    def loaded() -> SamplingClient:
        return service.create_sampling_client(path)

    def checkpoint(_number: int) -> None:
        answers(loaded())

    def checked(_number: int) -> None:
        client = loaded()
        proof = AdapterProof(service, name, with_answers=True)
        proof.check(client, "the adapter", checkpoint=path)
        answers(client)

    def checked_apart(_number: int) -> None:
        client = loaded()
        AdapterProof(service, name).check(client, "the adapter", checkpoint=path)
        answers(client)

    def held(_number: int) -> None:
        client = loaded()
        proof = AdapterProof(service, name, with_answers=True)
        proof.check(client, "the adapter", trainer=trainer)
        answers(client)

    def held_apart(_number: int) -> None:
        client = loaded()
        AdapterProof(service, name).check(client, "the adapter", trainer=trainer)
        answers(client)

    groups = {
        "a run's sampler": (sampler, proven, alone),
        "a checkpoint": (checkpoint, checked, checked_apart),
        "a checkpoint and its trainer": (checkpoint, held, held_apart),
    }
    for who, group in groups.items():
        names = [f"{who}, {how}" for how in ("first prompts", "proof with them", "proof before")]
        seconds = race(dict(zip(names, group, strict=True)), config, "proving")
        for contender, rounds in seconds.items():
            report.add("prove", contender, seconds=rounds)
        plain, joined, before = seconds.values()
        report.note(
            f"The proof of {who}: {_more(joined, plain):.0f} ms more, in a pass apart "
            f"{_more(before, plain):.0f} ms"
        )


def _more(one: list[float], other: list[float]) -> float:
    """Milliseconds, by the median over rounds; both ran in each, in turn."""
    return 1000 * statistics.median(a - b for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    chz.nested_entrypoint(main)
