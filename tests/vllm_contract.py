"""What a sampler by vLLM has to do, whichever vLLM that is: checks for a fake and for the real one.

Every check gets a World: a service with a model, and a client that trained one step on it.
"""

import gc
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.adapter_proof import AdapterProof
from training.api import (
    AdamParams,
    Datum,
    ModelInput,
    RequestFailedError,
    SampledToken,
    SamplingParams,
)
from training.backends.vllm.service import VllmSamplingClient, VllmServiceClient

# sampler against trainer in float32
LIMIT = 1e-4
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["n"],
    "additionalProperties": False,
}


@dataclass
class World:
    service: VllmServiceClient
    model: str
    trainer: Any
    prompt: ModelInput

    @property
    def tokenizer(self) -> Any:
        return self.trainer.get_tokenizer()

    @property
    def pid(self) -> int:
        return self.service.vllm(self.service.engine(self.model)).pid


def make_world(service: VllmServiceClient, model: str) -> World:
    trainer = service.create_lora_training_client(model, rank=4, seed=0)
    tokenizer = trainer.get_tokenizer()
    prompt = tokenizer.encode("Name a colour and a number.", add_special_tokens=False)
    train(trainer, prompt)
    return World(service, model, trainer, ModelInput.from_ints(prompt))


def train(trainer: Any, tokens: list[int], rate: float = 3e-3, last: int | None = None) -> float:
    """One step on all tokens, or the `last` ones; the sum of their losses before."""
    length = len(tokens) - 1
    weights = [0.0] * (length - (last or length)) + [1.0] * (last or length)
    fields = {"target_tokens": tokens[1:], "weights": weights}
    data = [Datum(ModelInput.from_ints(tokens[:-1]), fields)]
    loss = trainer.forward_backward(data, "cross_entropy").result().metrics["loss:sum"]
    trainer.optim_step(AdamParams(learning_rate=rate)).result()
    return loss


def sampler_of(world: World) -> VllmSamplingClient:
    return world.trainer.save_weights_and_get_sampling_client().result()


def by_trainer(trainer: Any, prompt: ModelInput, sampled: list[int]) -> np.ndarray:
    """The trainer's logprobs of sampled tokens."""
    tokens = [*prompt.to_ints(), *sampled]
    fields = {"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)}
    datum = Datum(ModelInput.from_ints(tokens[:-1]), fields)
    output = trainer.forward([datum], "cross_entropy").result()
    return output.loss_fn_outputs[0]["logprobs"].to_numpy()[prompt.length - 1 :]


def check_logprobs_are_the_trainers(world: World) -> None:
    params = SamplingParams(max_tokens=8, seed=1, temperature=0.7, top_p=0.9, top_k=40, stop=[])
    response = sampler_of(world).sample(world.prompt, 3, params).result()
    assert [len(s.tokens) for s in response.sequences] == [8, 8, 8]
    for sequence in response.sequences:
        expected = by_trainer(world.trainer, world.prompt, sequence.tokens)
        assert np.abs(sequence.logprobs_np - expected).max() < LIMIT
        assert sequence.stop_reason == "length"


def check_greedy_is_the_local_samplers(world: World) -> None:
    """Base model, and two adapters of different rank, in one batch."""
    other = world.service.create_lora_training_client(world.model, rank=8, seed=1)
    train(other, world.prompt.to_ints()[::-1], rate=1e-2)
    samplers = [
        world.service.create_sampling_client(base_model=world.model),
        sampler_of(world),
        other.save_weights_and_get_sampling_client().result(),
    ]
    params = SamplingParams(max_tokens=6, temperature=0.0, stop=[])
    futures = [s.sample(world.prompt, 1, params, topk_sample_logprobs=2) for s in samplers]
    for sampler, future in zip(samplers, futures, strict=True):
        [sequence] = future.result().sequences
        whole = ModelInput.from_ints([*world.prompt.to_ints(), *sequence.tokens])
        # the local engine's, of the same weights
        expected = sampler.compute_logprobs(whole).result()[world.prompt.length :]
        assert np.abs(sequence.logprobs_np - np.array(expected, float)).max() < LIMIT
        likeliest = sequence.topk_logprobs_np
        assert likeliest is not None and likeliest.token_ids.shape == (6, 2)
        assert likeliest.token_ids[:, 0].tolist() == sequence.tokens
        assert likeliest.logprobs[:, 0].tolist() == sequence.logprobs
        assert (likeliest.logprobs[:, 0] >= likeliest.logprobs[:, 1]).all()


def check_prompt_logprobs(world: World) -> None:
    sampler = sampler_of(world)
    params = SamplingParams(max_tokens=2, seed=0, stop=[])
    response = sampler.sample(world.prompt, 1, params, True, topk_prompt_logprobs=3).result()
    told = response.prompt_logprobs
    assert told is not None and told[0] is None
    assert told == sampler.compute_logprobs(world.prompt).result()
    assert response.topk_prompt_logprobs_np is not None
    assert response.topk_prompt_logprobs_np.token_ids.shape == (world.prompt.length, 3)
    # beside samples, which have other adapters
    base = world.service.create_sampling_client(base_model=world.model)
    long = SamplingParams(max_tokens=30, seed=0, stop=[])
    beside = [client.sample(world.prompt, 4, long) for client in (sampler, base)]
    own = sampler.own_logprobs(world.prompt).result()
    assert [len(future.result().sequences) for future in beside] == [4, 4]
    assert np.abs(np.array(own[1:], float) - np.array(told[1:], float)).max() < LIMIT


def check_seeds(world: World) -> None:
    sampler = sampler_of(world)

    def sample(seed: int | None, num_samples: int = 2) -> list[list[int]]:
        params = SamplingParams(max_tokens=12, seed=seed, stop=[])
        response = sampler.sample(world.prompt, num_samples, params).result()
        return [s.tokens for s in response.sequences]

    first = sample(5)
    assert sample(5) == first and first[0] != first[1]
    # sample j of a request is the same whatever else is asked for
    assert sample(5, 1) == first[:1]
    # neither has neighbouring requests nor an index any sample in common
    assert not {*map(tuple, sample(6))} & {*map(tuple, first)}
    assert sample(None) != sample(None)


def check_stops(world: World) -> None:
    sampler = sampler_of(world)
    params = SamplingParams(max_tokens=20, seed=3, stop=[])
    [free] = sampler.sample(world.prompt, 1, params).result().sequences
    assert len(free.tokens) == 20 and free.stop_reason == "length"
    token = free.tokens[4]

    def stopped_at(stop: Any) -> Any:
        given = SamplingParams(max_tokens=20, seed=3, stop=stop)
        [sequence] = sampler.sample(world.prompt, 1, given).result().sequences
        assert sequence.tokens == free.tokens[: len(sequence.tokens)]
        assert len(sequence.logprobs or ()) == len(sequence.tokens)
        return sequence

    by_token = stopped_at([token])
    assert by_token.stop_reason == "stop"
    # kept once, and nothing after it
    assert by_token.tokens.index(token) == len(by_token.tokens) - 1
    word = world.tokenizer.decode(free.tokens[3:5])
    by_string = stopped_at([word])
    text = world.tokenizer.decode(by_string.tokens)
    assert by_string.stop_reason == "stop" and text.count(word) == 1
    assert word not in world.tokenizer.decode(by_string.tokens[:-1])


def check_end_token(world: World) -> None:
    """None stops at the model's end token, [] goes through it."""
    trainer = world.service.create_lora_training_client(world.model, rank=4, seed=2)
    [end] = world.service.create_sampling_client(base_model=world.model).eos_tokens
    for _ in range(60):
        if train(trainer, [*world.prompt.to_ints(), end, end, end], rate=1e-2, last=3) < 0.3:
            break
    sampler = trainer.save_weights_and_get_sampling_client().result()
    for stop, length, reason in ((None, 1, "stop"), ([], 3, "length")):
        params = SamplingParams(max_tokens=3, temperature=0.0, stop=stop)
        [sequence] = sampler.sample(world.prompt, 1, params).result().sequences
        assert sequence.tokens == [end] * length and sequence.stop_reason == reason


def check_constrained(world: World) -> None:
    """Valid, ending where the local sampler ends, with logprobs that a loss may use."""
    sampler = sampler_of(world)
    grammar = 'start: "colour " ("red" | "blue")'
    for params in (
        SamplingParams(max_tokens=40, seed=1, json_schema=SCHEMA),
        SamplingParams(max_tokens=40, seed=1, json_schema=SCHEMA, stop=[]),
        SamplingParams(max_tokens=40, seed=1, grammar=grammar),
    ):
        response = sampler.sample(world.prompt, 2, params, topk_sample_logprobs=2).result()
        for sequence in response.sequences:
            text = world.tokenizer.decode(sequence.tokens)
            if params.grammar is None:
                assert text in [f'{{"n":{n}}}' for n in range(1, 6)]
            else:
                assert text in ("colour red", "colour blue")
            assert sequence.stop_reason == "stop"
            expected = by_trainer(world.trainer, world.prompt, sequence.tokens)
            assert np.abs(sequence.logprobs_np - expected).max() < LIMIT
            likeliest = sequence.topk_logprobs_np
            assert likeliest is not None
            assert likeliest.token_ids.shape == (len(sequence.tokens), 2)


def check_versions(world: World) -> None:
    """A step makes another sampler, and the one before stays what it was; folders go with it."""
    trainer: Any = world.service.create_lora_training_client(world.model, rank=4, seed=3)
    train(trainer, world.prompt.to_ints())
    before = trainer.save_weights_and_get_sampling_client().result()
    told = before.own_logprobs(world.prompt).result()
    train(trainer, world.prompt.to_ints(), rate=1e-2)
    after = trainer.save_weights_and_get_sampling_client().result()
    changed = np.array(after.own_logprobs(world.prompt).result()[1:], float)
    assert before.own_logprobs(world.prompt).result() == pytest.approx(told, abs=LIMIT)
    assert np.abs(changed - np.array(told[1:], float)).max() > 0.01
    expected = after.compute_logprobs(world.prompt).result()
    assert np.abs(changed - np.array(expected[1:], float)).max() < LIMIT
    folder = Path(before._adapter.path)
    assert (folder / "adapter_model.safetensors").is_file()
    # a request holds it
    params = SamplingParams(max_tokens=8, seed=0, stop=[])
    future = before.sample(world.prompt, 1, params)
    del before
    assert len(future.result().sequences[0].tokens) == 8
    del future
    wait_until(lambda: gc.collect() >= 0 and not folder.exists())


def check_checkpoint(world: World) -> None:
    path = world.trainer.save_weights_for_sampler(f"one-{time.monotonic_ns()}").result().path
    sampler: Any = world.service.create_sampling_client(path)
    told = np.array(sampler.own_logprobs(world.prompt).result()[1:], float)
    expected = by_trainer(world.trainer, ModelInput.from_ints(world.prompt.to_ints()[:1]),
                          world.prompt.to_ints()[1:])  # fmt: skip
    assert np.abs(told - expected).max() < LIMIT
    proof = AdapterProof(world.service, world.model)
    proof.check(sampler, path, checkpoint=path)
    figures = proof.figures[path]
    assert figures.from_trainer is not None and figures.from_trainer < LIMIT
    assert figures.from_base > 10 * LIMIT


def check_proof_of_a_trainers_sampler(world: World) -> None:
    sampler = AdapterProof(world.service, world.model, with_answers=True).sampler(
        world.trainer, "step 1"
    )
    assert isinstance(sampler, VllmSamplingClient) and not sampler.probes
    proof = AdapterProof(world.service, world.model)
    proof.check(sampler, "step 1 again", trainer=world.trainer)
    assert proof.figures["step 1 again"].from_base > 10 * LIMIT


def check_streaming(world: World) -> None:
    sampler = sampler_of(world)
    told: list[SampledToken] = []

    def on_token(token: SampledToken) -> bool:
        told.append(token)
        # enough of sample 1 after three tokens
        return token.sample == 0 or len([t for t in told if t.sample == 1]) < 3

    params = SamplingParams(max_tokens=6, seed=8, stop=[])
    whole = sampler.sample(world.prompt, 2, params).result().sequences
    make = sampler.prepare_sample(
        world.prompt, 2, params, topk_sample_logprobs=1, on_token=on_token
    )
    streamed = make().result().sequences
    for sample, (sequence, length) in enumerate(zip(streamed, (6, 3), strict=True)):
        mine = [t for t in told if t.sample == sample]
        assert sequence.tokens == [t.token for t in mine] == whole[sample].tokens[:length]
        assert sequence.logprobs == pytest.approx([t.logprob for t in mine])
        assert all(t.topk is not None and len(t.topk[0]) == 1 for t in mine)
    assert [t.stop_reason for t in told if t.sample == 0] == [None] * 5 + ["length"]
    assert streamed[1].stop_reason == "stop"
    assert list(sampler.stream(world.prompt, params)) == whole[0].tokens


def check_streaming_of_a_constrained_sample(world: World) -> None:
    """All of it at once, when its logprobs are known."""
    sampler = sampler_of(world)
    told: list[SampledToken] = []
    params = SamplingParams(max_tokens=40, seed=1, json_schema=SCHEMA)
    make = sampler.prepare_sample(
        world.prompt, 1, params, on_token=lambda token: told.append(token) or True
    )
    [sequence] = make().result().sequences
    assert [t.token for t in told] == sequence.tokens and told[-1].stop_reason == "stop"
    assert [t.logprob for t in told] == pytest.approx(sequence.logprobs)


def check_a_failing_listener(world: World) -> None:
    def on_token(_token: SampledToken) -> bool:
        raise KeyError("the listener's own")

    params = SamplingParams(max_tokens=6, seed=8, stop=[])
    sampler = sampler_of(world)
    with pytest.raises(KeyError, match="the listener's own"):
        sampler.prepare_sample(world.prompt, 1, params, on_token=on_token)().result()
    assert len(sampler.sample(world.prompt, 1, params).result().sequences[0].tokens) == 6


def check_cancelling(world: World) -> None:
    sampler = sampler_of(world)
    begun = threading.Event()

    def on_token(_token: SampledToken) -> bool:
        begun.set()
        return True

    params = SamplingParams(max_tokens=100, seed=8, stop=[])
    future = sampler.prepare_sample(world.prompt, 1, params, on_token=on_token)()
    assert begun.wait(60)
    future.cancel()
    from concurrent.futures import CancelledError

    with pytest.raises(CancelledError):
        future.result(60)
    short = SamplingParams(max_tokens=3, seed=8, stop=[])
    assert len(sampler.sample(world.prompt, 1, short).result().sequences[0].tokens) == 3


def check_what_is_refused(world: World) -> None:
    sampler = sampler_of(world)
    with pytest.raises(ValueError, match=r"temperature=0\.005: vLLM samples at 0 or from 0\.01"):
        sampler.sample(world.prompt, 1, SamplingParams(temperature=0.005))
    with pytest.raises(ValueError, match=r"vLLM holds 256 tokens, prompt and answer together"):
        sampler.sample(world.prompt, 1, SamplingParams(max_tokens=250))
    with pytest.raises(ValueError, match="vocabulary"):
        sampler.sample(ModelInput.from_ints([10**7]), 1, SamplingParams())
    with pytest.raises(ValueError, match="json_schema"):
        sampler.sample(world.prompt, 1, SamplingParams(json_schema={"type": 3}))


def check_a_bad_adapter(world: World) -> None:
    """It is refused when its sampler is made, and vLLM lives."""
    sampler = sampler_of(world)
    vllm = world.service.vllm(world.service.engine(world.model))
    assert sampler._weights is not None
    broken = vllm.folders.write(world.service.engine(world.model), sampler._weights)
    (broken.path / "adapter_model.safetensors").write_bytes(b"torn")
    from training.backends.vllm.process import RefusedError

    for kind, values in (
        ("add", broken.key),
        ("logprobs", {"adapter": broken.key, "prompt": world.prompt.to_ints()}),
    ):
        with pytest.raises(RefusedError) as caught:
            vllm.ask(kind, values).future.result()
        assert caught.value.kind == "adapter"
    params = SamplingParams(max_tokens=3, seed=8, stop=[])
    assert len(sampler.sample(world.prompt, 1, params).result().sequences[0].tokens) == 3


def check_death(world: World, kill: Any) -> None:
    """Requests that it had are asked again, of vLLM started again, once; those that had told tokens
    end with an error that names the log. `kill` ends vLLM. Comes last: afterwards the service is of
    no use."""
    sampler = sampler_of(world)
    params = SamplingParams(max_tokens=30, temperature=0.0, stop=[])
    [before] = sampler.sample(world.prompt, 1, params).result().sequences
    for restarted in (True, False):
        begun = threading.Event()
        long = SamplingParams(max_tokens=200, seed=8, stop=[])
        future = sampler.prepare_sample(
            world.prompt, 1, long, on_token=lambda _token, e=begun: e.set() or True
        )()
        assert begun.wait(60)
        under_way = [sampler.sample(world.prompt, 1, params) for _ in range(3)]
        kill(world.pid)
        with pytest.raises(RequestFailedError, match=r"vLLM stopped \(.*its log is .*\.log"):
            future.result(60)
        if restarted:
            for request in (*under_way, sampler.sample(world.prompt, 1, params)):
                [after] = request.result().sequences
                assert after.tokens == before.tokens
                assert after.logprobs == pytest.approx(before.logprobs, abs=LIMIT)
        else:
            for request in (*under_way, sampler.sample(world.prompt, 1, params)):
                with pytest.raises(RequestFailedError, match="vLLM stopped"):
                    request.result(60)


def wait_until(holds: Any, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


CHECKS = [
    value
    for name, value in list(globals().items())
    if name.startswith("check_") and name != "check_death"
]
