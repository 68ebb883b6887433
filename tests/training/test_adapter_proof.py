"""Proof that an adapter is what answers, on a tiny model that loses it.

uv run pytest tests/training/test_adapter_proof.py
"""

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import randomise

from training.adapt import AdaptJob, AdaptSettings, adapt
from training.adapter_proof import (
    QUICK_TOKENS,
    UNTRAINED,
    AdapterNotUsedError,
    AdapterProof,
    Figures,
    compare,
    probe_datum,
    probe_tokens,
    settles_it,
)
from training.api import (
    AdamParams,
    ModelInput,
    RequestFailedError,
    SamplingClient,
    SamplingParams,
)
from training.backends.local.service import LocalSamplingClient
from training.endpoints import Endpoints

pytestmark = pytest.mark.usefixtures("one_torch_thread")

# nothing is asked of what follows the last token
READ_TOKENS = QUICK_TOKENS - 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tiny_chat import save_chat_model

    return save_chat_model(tmp_path_factory.mktemp("chat"), favourites="abc ")


@pytest.fixture
def trainer(service: Any, model: str) -> Any:
    made = service.create_lora_training_client(model, rank=2, seed=0)
    randomise(made, seed=1)
    return made


def first_tokens(client: Any) -> list[int]:
    return probe_tokens(client.get_tokenizer())[:QUICK_TOKENS]


def logprobs(sampler: SamplingClient) -> np.ndarray:
    tokens = ModelInput.from_ints(first_tokens(sampler))
    return np.array(sampler.compute_logprobs(tokens).result()[1:])


@pytest.fixture
def passes(service: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of each pass through the base model."""
    decoder = service.engine(model).decoder
    hidden = decoder.hidden
    ran: list[int] = []

    def spied(tokens_T: Any, *others: Any) -> Any:
        ran.append(len(tokens_T))
        return hidden(tokens_T, *others)

    monkeypatch.setattr(decoder, "hidden", spied)
    return ran


def ask(sampler: Any, text: bytes, max_tokens: int = 2) -> Any:
    params = SamplingParams(max_tokens=max_tokens, seed=3, stop=[])
    return sampler.sample(ModelInput.from_ints(list(text)), 1, params)


def lose(monkeypatch: pytest.MonkeyPatch, weights_of: Callable[[Any], Any]) -> None:
    """Samplers get other weights than those they are made with."""
    make = LocalSamplingClient.__init__

    def other(self: Any, engine: Any, weights: Any) -> None:
        make(self, engine, None if weights is None else weights_of(weights))

    monkeypatch.setattr(LocalSamplingClient, "__init__", other)


class OnlyTheProtocol:
    """A client of which only what the protocols name is there, as of a remote backend."""

    ASKED = (
        *("create_sampling_client", "compute_logprobs", "forward", "get_tokenizer"),
        *("save_weights_and_get_sampling_client", "result"),
    )

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        if name not in self.ASKED:
            raise AttributeError(name)
        method = getattr(self._client, name)

        def call(*args: Any, **options: Any) -> Any:
            made = method(*args, **options)
            is_client = isinstance(made, LocalSamplingClient) or name.startswith("save_weights")
            return OnlyTheProtocol(made) if is_client else made

        return call


@pytest.mark.parametrize("joined", [True, False])
def test_the_figures_are_those_of_the_requests(
    joined: bool,
    service: Any,
    model: str,
    trainer: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    proof = AdapterProof(service, model, tmp_path, with_answers=joined)
    sampler = proof.sampler(trainer, "the adapter")
    sampled, base = logprobs(sampler), logprobs(service.create_sampling_client(base_model=model))
    datum = probe_datum(first_tokens(trainer))
    [output] = trainer.forward([datum], "cross_entropy").result().loss_fn_outputs
    difference = sampled - output["logprobs"].to_numpy()
    stored = json.loads((tmp_path / "adapter_proof.json").read_text())
    assert stored == {
        "the adapter": {
            "from_base": pytest.approx(np.abs(sampled - base).max(), abs=1e-5),
            "from_trainer": pytest.approx(np.abs(difference).max(), abs=1e-5),
            "from_trainer_rms": pytest.approx(np.sqrt((difference**2).mean()), abs=1e-5),
            "untrained": False,
        }
    }
    assert stored["the adapter"]["from_base"] > 0.1
    assert stored["the adapter"]["from_trainer"] < 1e-4
    # told once a run, also when it goes on in another process
    logprobs(proof.sampler(trainer, "the adapter"))
    randomise(trainer, seed=2)
    logprobs(
        AdapterProof(service, model, tmp_path, with_answers=joined).sampler(trainer, "the adapter")
    )
    assert json.loads((tmp_path / "adapter_proof.json").read_text()) == stored
    assert caplog.text.count("the adapter is in use") == 2


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize(
    ("whose", "told"),
    [("base", "it answers as the base model does"), ("another", "does not have the trainer's")],
)
def test_a_sampler_without_the_trainers_adapter_is_an_error(
    joined: bool,
    whose: str,
    told: str,
    service: Any,
    model: str,
    trainer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    another = service.create_lora_training_client(model, rank=2, seed=0)
    randomise(another, seed=3)
    weights = None if whose == "base" else another._adapter.snapshot()
    lose(monkeypatch, lambda _: weights)
    clients: list[tuple[Any, Any]] = [(service, trainer)]
    clients.append((OnlyTheProtocol(service), OnlyTheProtocol(trainer)))
    for client, of in clients:
        if whose == "another" and client is not service:
            # of a backend that does not tell its precision only the base model is recognised
            continue
        with pytest.raises(AdapterNotUsedError, match=told):
            logprobs(AdapterProof(client, model, with_answers=joined).sampler(of, "the adapter"))


def saved(service: Any, model: str, seed: int) -> str:
    """A checkpoint of an adapter of its own."""
    made = service.create_lora_training_client(model, rank=2, seed=0)
    randomise(made, seed=seed)
    return made.save_state("saved").result().path


def test_checkpoints_are_looked_at_with_the_first_answers_of_their_model(
    service: Any, model: str, passes: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever of that model is asked first, and before any of it is answered."""
    caplog.set_level(logging.INFO)
    paths = [saved(service, model, seed) for seed in (1, 2)]
    with pytest.MonkeyPatch.context() as patch, Endpoints(run_path=tmp_path) as endpoints:
        patch.setattr(endpoints, "_connected", lambda: service)
        base = endpoints.sampler(model)
        tuned = [endpoints.sampler(model, path) for path in paths]
        assert passes == [] and endpoints.figures == {}
        ask(base, b"a lazy dog", 1).result()
        assert passes == [10 + 2 * 2 * READ_TOKENS]
        for path, sampler in zip(paths, tuned, strict=True):
            of_base, own = logprobs(base), logprobs(sampler)
            found = endpoints.figures[path]
            assert found.from_base == pytest.approx(np.abs(own - of_base).max(), abs=1e-5)
            assert found.from_base > 0.1 and found.from_trainer is None
            assert found.untrained is False
        assert max(passes[1:]) == READ_TOKENS
    assert json.loads((tmp_path / "adapter_proof.json").read_text()).keys() == set(paths)
    assert caplog.text.count("is in use") == 2


@pytest.mark.parametrize("asked", ["base", "tuned"])
def test_a_checkpoint_that_is_not_in_use_is_an_error(
    asked: str, service: Any, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(service, model, 1)
    lose(monkeypatch, lambda _: None)
    with Endpoints(device="cpu") as endpoints:
        base: Any = endpoints.sampler(model)
        tuned: Any = endpoints.sampler(model, path)
        first = base if asked == "base" else tuned
        waiting = [ask(first, b"a lazy dog", 1), ask(first, b"a fox", 9)]
        for answer in waiting:
            with pytest.raises(AdapterNotUsedError, match="although its adapter is trained"):
                answer.result()
        for sampler in (base, tuned):
            with pytest.raises(AdapterNotUsedError, match="although its adapter is trained"):
                next(sampler.stream(ModelInput.from_ints(list(b"a fox")), SamplingParams()))
        assert endpoints.figures == {}


@pytest.mark.parametrize("apart", [False, True])
def test_what_base_model_and_checkpoints_answer_has_the_bits_it_has_without_the_proof(
    apart: bool, service: Any, model: str, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [saved(service, model, seed) for seed in (1, 2)]
    texts = [b"a lazy dog", b"a fox", b"why not now"]
    monkeypatch.setattr(type(service.engine(model).decoder), "keeps_rows_apart", not apart)

    def answers(with_proof: bool) -> list[Any]:
        samplers = [service.create_sampling_client(base_model=model)]
        samplers += [service.create_sampling_client(path) for path in paths]
        if with_proof:
            proof = AdapterProof(service, model, with_answers=True)
            for path, sampler in zip(paths, samplers[1:], strict=True):
                proof.check(sampler, path, checkpoint=path, asked_before=samplers[:1])
        before = list(passes)
        asked = [ask(sampler, text, 5) for text in texts for sampler in samplers]
        sequences = [future.result().sequences[0] for future in asked]
        # where others' bits might change they were looked at before
        prompts = 3 * sum(len(text) for text in texts)
        joined = with_proof and not apart
        assert passes[len(before)] == prompts + (joined and 2 * 2 * READ_TOKENS)
        return [(s.tokens, s.logprobs) for s in sequences]

    assert answers(True) == answers(False)


def test_a_checkpoint_before_the_first_step_is_said_to_be_one(
    service: Any, model: str, passes: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = service.create_lora_training_client(model, rank=2, seed=0)
    path = trainer.save_state("000000").result().path
    proof = AdapterProof(service, model, with_answers=True)
    proof.check(service.create_sampling_client(path), "mine", checkpoint=path)
    # at once: nobody needs to be asked
    assert proof.figures["mine"] == Figures(0.0, untrained=True) and passes == []
    assert f"mine: {UNTRAINED}" in caplog.text
    # held against its trainer it is what the trainer has
    proof.check(service.create_sampling_client(path), "its own", trainer=trainer)
    assert proof.figures["its own"].untrained
    randomise(trainer, seed=1)
    with pytest.raises(AdapterNotUsedError, match="it answers as the base model does"):
        lost = service.create_sampling_client(path)
        proof.check(lost, "lost", trainer=trainer)
        logprobs(lost)
    # in a run it is where every adapter begins: nothing is said, and the next one is looked at
    caplog.clear()
    proof = AdapterProof(service, model)
    trainer = service.create_lora_training_client(model, rank=2, seed=0)
    proof.sampler(trainer, "policy")
    assert not caplog.records
    randomise(trainer, seed=1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AdapterNotUsedError):
        lose(patch, lambda _: None)
        logprobs(proof.sampler(trainer, "policy"))


def test_a_checkpoint_is_held_against_its_trainer_with_the_first_answers(
    service: Any, model: str, trainer: Any, passes: list[int]
) -> None:
    path = trainer.save_state("asked").result().path
    sampler = service.create_sampling_client(path)
    proof = AdapterProof(service, model, with_answers=True)
    proof.check(sampler, "read back", trainer=trainer)
    assert proof.figures == {} and passes == []
    logprobs(sampler)
    assert proof.figures["read back"].from_trainer == 0 and len(passes) == 1
    other = service.create_lora_training_client(model, rank=2, seed=0)
    randomise(other, seed=5)
    proof.check(sampler, "another's", trainer=other)
    with pytest.raises(AdapterNotUsedError, match="does not have the trainer's adapter"):
        logprobs(sampler)


def test_a_checkpoint_that_is_read_with_another_scale_is_not_the_trainers(
    service: Any, model: str, trainer: Any
) -> None:
    """Though it has the very bits of its weights."""
    path = Path(trainer.save_state("scaled").result().path)
    proof = AdapterProof(service, model)
    proof.check(service.create_sampling_client(str(path)), "read back", trainer=trainer)
    assert proof.figures["read back"].from_trainer == 0
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 8}))
    with pytest.raises(AdapterNotUsedError, match="does not have the trainer's adapter"):
        proof.check(service.create_sampling_client(str(path)), "other", trainer=trainer)


def test_what_is_allowed_depends_on_the_precision(caplog: pytest.LogCaptureFixture) -> None:
    base, trained = np.array([-1.0, -2.0, -3.0, -4.0]), np.array([-2.0, -3.0, -3.5, -1.0])
    first = np.array([1.0, 0, 0, 0])
    near, off, wide = (trained + by * first for by in (9e-5, 0.09, 0.11))
    for sampled, dtype in ((near, "float32"), (off, "bfloat16")):
        figures = compare("x", sampled, base, trained, dtype=dtype, size_of_b=1.0)
        assert figures.from_trainer == pytest.approx(np.abs(sampled - trained).max())
        assert figures.from_trainer_rms == pytest.approx(np.abs(sampled - trained).max() / 2)
    for sampled, dtype in ((trained + 2e-4 * first, "float32"), (wide, "bfloat16")):
        with pytest.raises(AdapterNotUsedError, match="allowed from the trainer's"):
            compare("x", sampled, base, trained, dtype=dtype, size_of_b=1.0)
    # noise of a backend of unknown precision
    assert not caplog.records
    compare("x", wide, base, trained, dtype=None, size_of_b=None)
    assert "usual is RMS 0.05" in caplog.text
    with pytest.raises(AdapterNotUsedError, match="does not have the trainer's adapter"):
        compare("x", base + 1e-3, base, trained, dtype=None, size_of_b=None)


def test_the_size_of_b_is_of_the_weights_in_training(service: Any, trainer: Any) -> None:
    """Of the first matrix that has any size, or the largest of all."""
    layers = list(trainer._adapter.layers.values())
    assert trainer._adapter.size_of_b() == float(layers[0].b.abs().max()) > 0
    for layer in layers:
        layer.b.fill_(0.0)
    assert trainer._adapter.size_of_b() == 0
    layers[1].b[0, 0], layers[2].b[0, 0] = -3e-8, 1e-8
    assert trainer._adapter.size_of_b() == pytest.approx(3e-8)
    layers[3].b[0, 0] = -7.0
    assert trainer._adapter.size_of_b() == 7.0
    path = trainer.save_state("sized").result().path
    assert service.size_of_b(path) == 7.0


def test_where_the_adapter_shows_the_sampler_s_first_pass_is_enough(
    service: Any, model: str, trainer: Any, passes: list[int]
) -> None:
    sampler = AdapterProof(service, model, with_answers=True).sampler(trainer, "the adapter")
    assert passes == []
    answers = [ask(sampler, text) for text in (b"a lazy dog", b"a fox")]
    assert [answer.result().sequences[0].stop_reason for answer in answers] == ["length"] * 2
    assert passes[0] == 10 + 5 + 2 * READ_TOKENS and set(passes[1:]) == {2}
    path = trainer.save_state("shows").result().path
    sampler = service.create_sampling_client(path)
    del passes[:]
    proof = AdapterProof(service, model)
    proof.check(sampler, "mine", checkpoint=path)
    assert passes == [2 * READ_TOKENS]
    figures = proof.figures["mine"]
    of_base = logprobs(service.create_sampling_client(base_model=model))
    assert figures.from_base == pytest.approx(np.abs(logprobs(sampler) - of_base).max(), abs=1e-5)


def test_the_head_is_read_once_for_first_tokens_and_probe(
    service: Any, model: str, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for a single first token, whose row has bits of its own."""
    decoder = service.engine(model).decoder
    logits, read = decoder.logits, list[int]()

    def spied(hidden: Any, lora: Any) -> Any:
        read.append(len(hidden))
        return logits(hidden, lora)

    monkeypatch.setattr(decoder, "logits", spied)
    probed = 2 * READ_TOKENS
    for texts, rows in (([b"a lazy dog", b"a fox"], [2 + probed]), ([b"a fox"], [probed, 1])):
        proof = AdapterProof(service, model, with_answers=True)
        sampler = proof.sampler(trainer, "the adapter")
        del read[:]
        for answer in [ask(sampler, text, 1) for text in texts]:
            answer.result()
        assert read == rows
        of_base = logprobs(service.create_sampling_client(base_model=model))
        found = proof.figures["the adapter"].from_base
        first = slice(0, READ_TOKENS)
        expected = np.abs(logprobs(sampler)[first] - of_base[first]).max()
        assert found == pytest.approx(expected, abs=1e-5)


def test_a_prefill_without_room_for_more_rows_comes_after_the_probe_s_own(
    service: Any, model: str, trainer: Any, passes: list[int]
) -> None:
    """Room is up to the next block of 64 rows; a row alone has bits of its own."""
    for length, ran in ((1, [4, 1]), (60, [64]), (61, [4, 61]), (64, [4, 64]), (65, [69])):
        del passes[:]
        sampler = AdapterProof(service, model, with_answers=True).sampler(trainer, "the adapter")
        ask(sampler, b"a" * length, 1).result()
        assert passes == ran


def test_an_adapter_that_hardly_shows_is_looked_at_alone(
    service: Any, model: str, trainer: Any, passes: list[int]
) -> None:
    """By the whole text, each in a pass of its own: equal weights would give equal bits."""
    randomise(trainer, seed=1, size=1e-6)
    tokens = probe_tokens(trainer.get_tokenizer())
    alone = 3 * [len(tokens) - 1]
    sampler = AdapterProof(service, model, with_answers=True).sampler(trainer, "the adapter")
    logprobs(sampler)
    assert passes == [READ_TOKENS + 2 * READ_TOKENS, *alone]
    del passes[:]
    proof = AdapterProof(service, model)
    proof.check(sampler, "mine", trainer=trainer)
    assert passes == [2 * READ_TOKENS, *alone]
    figures = proof.figures["mine"]
    text = ModelInput.from_ints(tokens)
    base = service.create_sampling_client(base_model=model)
    of_both = [np.array(c.compute_logprobs(text).result()[1:]) for c in (sampler, base)]
    assert 0 < figures.from_base == np.abs(of_both[0] - of_both[1]).max() < 2e-4


def test_nobody_gets_an_answer_of_what_is_not_the_adapter(
    service: Any, model: str, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one that is finished by the first pass, nor one that is asked for later."""
    with monkeypatch.context() as patch:
        lose(patch, lambda _: None)
        sampler = AdapterProof(service, model, with_answers=True).sampler(trainer, "the adapter")
    waiting = [ask(sampler, b"a lazy dog", 1), ask(sampler, b"a fox", 9)]
    waiting.append(sampler.compute_logprobs(ModelInput.from_ints(list(b"why"))))
    for answer in waiting:
        with pytest.raises(AdapterNotUsedError, match="it answers as the base model does"):
            answer.result()
    with pytest.raises(AdapterNotUsedError, match="it answers as the base model does"):
        ask(sampler, b"a fox").result()
    # what else there is goes on
    base = service.create_sampling_client(base_model=model)
    assert len(ask(base, b"a fox").result().sequences[0].tokens) == 2


def test_the_trainer_s_weights_are_those_that_the_sampler_was_given(
    service: Any, model: str, trainer: Any, passes: list[int], tmp_path: Path
) -> None:
    """Also where they change before anybody asks the sampler."""
    sampler = AdapterProof(service, model, tmp_path, with_answers=True).sampler(
        trainer, "the adapter"
    )
    trainer.forward_backward([probe_datum(list(b"a fox"))], "cross_entropy")
    trainer.optim_step(AdamParams(learning_rate=0.1)).result()
    assert passes == [4, 2 * READ_TOKENS]
    stored = json.loads((tmp_path / "adapter_proof.json").read_text())["the adapter"]
    assert stored["from_trainer"] < 1e-4 and stored["from_base"] > 0.1
    del passes[:]
    logprobs(sampler)
    assert passes == [READ_TOKENS]


def test_many_adapters_that_are_asked_when_all_are_trained_are_proven_once(
    service: Any, model: str, passes: list[int], tmp_path: Path
) -> None:
    jobs = [AdaptJob([probe_datum(list(b"a lazy dog"))], 1e-2, 1, seed=j) for j in range(3)]
    made: dict[int, SamplingClient] = {}
    proof = AdapterProof(service, model, tmp_path, with_answers=True)
    settings = AdaptSettings(lora={"rank": 2}, batch_size=1)
    adapt(service, model, jobs, settings, on_adapted=made.__setitem__, proof=proof)
    del passes[:]
    for answer in [ask(made[j], b"a fox", 1) for j in range(3)]:
        answer.result()
    assert passes == [3 * 5 + 2 * READ_TOKENS]
    [name] = json.loads((tmp_path / "adapter_proof.json").read_text())
    assert name == "adapting, adapter 1 of 3"


def test_an_adapter_that_gives_no_numbers_ends_its_own_answers(
    service: Any, model: str, trainer: Any, tmp_path: Path
) -> None:
    wild = service.create_lora_training_client(model, rank=2, seed=0)
    randomise(wild, seed=1, size=1e30)
    proof = AdapterProof(service, model, tmp_path, with_answers=True)
    lost = ask(proof.sampler(wild, "wild"), b"a fox")
    calm = ask(service.create_sampling_client(base_model=model), b"a fox")
    assert len(calm.result().sequences[0].tokens) == 2
    with pytest.raises(RequestFailedError, match="NaN"):
        lost.result()
    logprobs(proof.sampler(trainer, "calm"))
    assert json.loads((tmp_path / "adapter_proof.json").read_text()).keys() == {"calm"}


def test_an_adapter_that_gives_no_numbers_is_an_error_where_it_is_looked_at_alone(
    service: Any, model: str
) -> None:
    wild = service.create_lora_training_client(model, rank=2, seed=0)
    randomise(wild, seed=1, size=1e30)
    path = wild.save_state("wild").result().path
    proof = AdapterProof(service, model)
    with pytest.raises(RequestFailedError, match="NaN"):
        proof.sampler(wild, "wild")
    with pytest.raises(RequestFailedError, match="NaN"):
        proof.check(service.create_sampling_client(path), "read back", checkpoint=path)
    assert proof.figures == {}


def test_where_more_rows_may_change_bits_it_has_a_pass_of_its_own(
    service: Any, model: str, trainer: Any, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = service.engine(model).decoder
    assert decoder.keeps_rows_apart
    monkeypatch.setattr(type(decoder), "keeps_rows_apart", False)
    sampler = AdapterProof(service, model, with_answers=True).sampler(trainer, "the adapter")
    assert passes == [2 * READ_TOKENS]
    logprobs(sampler)
    assert passes == [2 * READ_TOKENS, READ_TOKENS]
    with monkeypatch.context() as patch, pytest.raises(AdapterNotUsedError):
        lose(patch, lambda _: None)
        AdapterProof(service, model, with_answers=True).sampler(trainer, "the adapter")


def test_a_shared_pass_settles_only_what_is_plain() -> None:
    base = np.array([-1.0, -2.0])
    for dtype, rounding in (("float32", 1.9e-4), ("bfloat16", 0.09)):
        for more, settled in ((rounding, False), (1.2 * rounding, True), (np.nan, False)):
            assert settles_it(base + more, base, dtype=dtype) == settled


def test_another_program_may_round_what_an_adapter_adds_in_its_own_way() -> None:
    base = np.array([-1.0, -2.0])
    for moved, off, fine in ((4.0, 3.9e-4, True), (4.0, 4.1e-4, False), (0.1, 1.1e-4, False)):
        arrays = base + moved + off, base, base + moved

        def check(of_one_program: bool, arrays: Any = arrays) -> Figures:
            return compare(
                *("x", *arrays), dtype="float32", size_of_b=0.1, of_one_program=of_one_program
            )

        with contextlib.nullcontext() if fine else pytest.raises(AdapterNotUsedError):
            check(False)
        with pytest.raises(
            AdapterNotUsedError, match=r"allowed from the trainer's is 0\.0001 at m"
        ):
            check(True)
    # the base model's answers are never the adapter's
    with pytest.raises(AdapterNotUsedError, match="it answers as the base model does"):
        compare("x", base, base, base + 4, dtype="float32", size_of_b=0.1, of_one_program=False)


def test_an_adapter_too_small_to_be_seen_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    base = np.array([-1.0, -2.0])
    figures = compare("x", base, base, base, dtype="float32", size_of_b=1e-9)
    assert not figures.untrained and "so small" in caplog.text
    with pytest.raises(AdapterNotUsedError, match="not in use"):
        compare("x", base, base, base, dtype="float32", size_of_b=1e-4)


def test_a_remote_backend_is_asked_through_the_api(
    service: Any, model: str, trainer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    proof = AdapterProof(OnlyTheProtocol(service), model)  # type: ignore[arg-type]
    fresh = service.create_lora_training_client(model, rank=2, seed=0)
    proof.sampler(OnlyTheProtocol(fresh), "before")  # type: ignore[arg-type]
    # nothing was trained, so nothing is proven
    assert caplog.text == "" and proof.figures == {}
    untold = service.create_sampling_client(base_model=model)
    proof.check(OnlyTheProtocol(untold), "checkpoint", checkpoint="x")  # type: ignore[arg-type]
    assert "checkpoint: a test text has the very logprobs of the base model" in caplog.text
    proof.sampler(OnlyTheProtocol(trainer), "after")  # type: ignore[arg-type]
    assert "after is in use" in caplog.text


@pytest.mark.parametrize("joined", [True, False])
def test_what_else_is_asked_is_computed_as_without_the_proof(
    joined: bool, connect_local: Callable[..., Any], model: str
) -> None:
    """While the base model is still answering and other adapters are trained, bit by bit."""
    letters = [list(b"a lazy dog and a fox"), list(b"ab ab ab ab"), list(b"why not now, then?")]
    jobs = [
        AdaptJob([probe_datum(letters[j])] * (j + 1), learning_rate=1e-2, num_epochs=2, seed=j)
        for j in range(3)
    ]
    settings = AdaptSettings(lora={"rank": 2}, batch_size=1)

    def answers(with_proof: bool) -> list[tuple[list[int], list[float]]]:
        service = connect_local()
        base = service.create_sampling_client(base_model=model)
        params = SamplingParams(max_tokens=40, seed=3, stop=[])
        asked = {-1: base.sample(ModelInput.from_ints(letters[0]), 3, params)}
        ran: list[tuple[int, int]] = []
        engine = service.engine(model)
        step, run = engine.sampler.step, engine.trainer.run

        def counted_step() -> None:
            ran.append((0, engine.sampler.rows))
            step()

        def counted_run(jobs: list[Any], *between: Any) -> Any:
            if any(job.backward for job in jobs):
                ran.append((1, len(jobs)))
            return run(jobs, *between)

        engine.sampler.step, engine.trainer.run = counted_step, counted_run

        def ask(index: int, sampler: SamplingClient) -> None:
            asked[index] = sampler.sample(ModelInput.from_ints(letters[index]), 2, params)

        proof = AdapterProof(service, model, with_answers=joined) if with_proof else None
        adapt(service, model, jobs, settings, on_adapted=ask, proof=proof)
        sequences = [s for j in sorted(asked) for s in asked[j].result().sequences]
        told.append(ran)
        return [(s.tokens, s.logprobs or []) for s in sequences]

    told: list[list[tuple[int, int]]] = []
    assert answers(True) == answers(False)
    # what ran, one after the other: decoding steps with their rows, training passes with their jobs
    assert told[0] == told[1]
    assert {kind for kind, _ in told[0]} == {0, 1}
