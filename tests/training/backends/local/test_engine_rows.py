"""The modes of bodies.py hold what packed tokens give, and loading chooses between them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB, cross_entropy_datum, random_tokens, randomise, save_tiny_model
from torch import nn

from training.api import ModelInput, SamplingParams
from training.backends.local import comparison, decoder, loading, notes
from training.backends.local.attention import SegmentAttention, attention_forward
from training.backends.local.batching import Segment
from training.backends.local.bodies import PackedBody, RowsBody
from training.backends.local.dropout import Dropout
from training.backends.local.linear import (
    LoraLinear,
    LoraPass,
    LoraSlice,
    NotAdaptableError,
    PassHolder,
    Stacked,
)

FAMILY = "gemma2"
CPU = torch.device("cpu")
# of Gemma 2 transformers' fast attention leaves out the soft cap
in_rows = pytest.mark.parametrize(
    ("family", "mode"),
    [("gpt2", comparison.MODES[1]), *((FAMILY, mode) for mode in comparison.MODES[2:])],
    ids=lambda value: value if isinstance(value, str) else value.name,
)


@pytest.fixture(autouse=True)
def own_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "notes" / notes.NOTES_FILE
    monkeypatch.setattr(notes, "notes_file", lambda: file)
    return file


def pair_of_clients(service: Any, folder: str, dropout: float) -> list[Any]:
    clients = [
        service.create_lora_training_client(folder, rank=rank, seed=rank, lora_dropout=dropout)
        for rank in (3, 6)
    ]
    for number, client in enumerate(clients):
        randomise(client, number)
    return clients


def gradients(client: Any) -> torch.Tensor:
    return client._adapter.grad.clone()


def trained_and_sampled(service: Any, folder: str, dropout: float) -> tuple[list[Any], list[Any]]:
    """Logprobs and gradients of two clients in one pass; samples and their logprobs."""
    clients = pair_of_clients(service, folder, dropout)
    rng = np.random.default_rng(0)
    shared = random_tokens(rng, 20)
    sequences = [random_tokens(rng, n) for n in (1, 30, 24, 9)]
    sequences += [[*shared, 3, 4], [*shared, 5, 6, 7, 8]]
    data = [cross_entropy_datum(rng, sequence) for sequence in sequences]
    futures = [client.forward_backward(data, "cross_entropy") for client in clients]
    outputs = [o["logprobs"].to_torch() for f in futures for o in f.result().loss_fn_outputs]
    numbers = [*outputs, *(gradients(client) for client in clients)]
    params = SamplingParams(max_tokens=9, stop=[], seed=4, temperature=0.9)
    samplers = [c.save_weights_and_get_sampling_client() for c in clients]
    samplers = [future.result() for future in samplers]
    samplers.append(service.create_sampling_client(base_model=folder))
    prompts = [random_tokens(rng, n) for n in (12, 12, 2, 21)]
    answers = [
        sampler.sample(ModelInput.from_ints(prompt), 1 + 2 * (i % 2), params, True)
        for i, prompt in enumerate(prompts)
        for sampler in samplers
    ]
    sampled = []
    for answer in (future.result() for future in answers):
        sampled.append([s.tokens for s in answer.sequences])
        numbers += [torch.tensor(s.logprobs) for s in answer.sequences]
        numbers.append(torch.tensor(answer.prompt_logprobs[1:]))
    return numbers, sampled


@in_rows
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_rows_give_what_packed_tokens_give(
    family: str, mode: Any, dropout: float, tiny_model, connect_local, monkeypatch
):
    folder = tiny_model(family)
    packed, packed_samples = trained_and_sampled(connect_local(), folder, dropout)
    notes.notes_file().unlink()
    monkeypatch.setattr(decoder, "MODES", (mode,))
    service = connect_local()
    rows, rows_samples = trained_and_sampled(service, folder, dropout)
    assert rows_samples == packed_samples
    for a, b in zip(packed, rows, strict=True):
        # of gradients a small one is a sum of large ones
        atol = max(2e-5, 1e-5 * float(b.abs().max()))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=atol)
    assert notes._read() and all(note["mode"] == mode.name for note in notes._read().values())


def random_pass(generator: torch.Generator) -> LoraPass:
    kept = {"layer": torch.rand(5, 3, generator=generator) < 0.5}
    slices = [LoraSlice(0, 4, {}), LoraSlice(4, 9, {}, Dropout(0.5, kept))]
    return LoraPass(slices, training=True, tokens=9)


def test_parts_of_a_pass():
    whole = random_pass(torch.Generator().manual_seed(0))
    part = whole.rows(2, 6)
    assert [(s.start, s.stop) for s in part.slices] == [(0, 2), (2, 4)]
    assert part.training and part.tokens == 4
    assert part.slices[1].dropout is not None and whole.slices[1].dropout is not None
    kept = whole.slices[1].dropout.kept["layer"]
    assert torch.equal(part.slices[1].dropout.kept["layer"], kept[:2])
    # rows [4, 5, 6] and [7, 8, 8]: padded with the last
    padded = whole.padded(torch.tensor([[0, 1, 2], [4, 5, 6], [7, 8, 8]]))
    assert [(s.start, s.stop) for s in padded.slices] == [(0, 3), (3, 9)]
    assert padded.slices[1].dropout is not None and padded.tokens == 9
    assert torch.equal(padded.slices[1].dropout.kept["layer"], kept[[0, 1, 2, 3, 4, 4]])
    spread = part.spread(2)
    assert [(s.start, s.stop) for s in spread.slices] == [(0, 4), (4, 8)]
    assert spread.slices[1].dropout is not None and spread.tokens == 8
    assert torch.equal(spread.slices[1].dropout.kept["layer"], kept[[0, 0, 1, 1]])
    a, b = torch.randn(3, 5, 2), torch.randn(3, 2, 7)
    stacked = LoraPass(stacked={"layer": Stacked(a, ((slice(0, 7), slice(0, 2), b),))}, tokens=3)
    spread = stacked.rows(1, 3).spread(2).stacked["layer"]
    assert torch.equal(spread.a, a[[1, 1, 2, 2]]) and torch.equal(
        spread.parts[0][2], b[[1, 1, 2, 2]]
    )


def test_a_layer_that_sees_some_of_the_tokens_cannot_be_adapted():
    holder = PassHolder()
    layer = LoraLinear("expert", [nn.Linear(4, 5)], holder)
    holder.current = LoraPass(tokens=6)
    assert layer(torch.randn(2, 3, 4)).shape == (2, 3, 5)
    assert layer(torch.randn(6, 2, 4)).shape == (6, 2, 5)
    with pytest.raises(NotAdaptableError, match="expert reads 4 rows of 6 tokens"):
        layer(torch.randn(4, 4))


def test_a_weight_tells_what_it_is_and_nothing_else():
    layer = LoraLinear("mixer", [nn.Linear(4, 5)], PassHolder())
    assert layer.weight.shape == (5, 4) and layer.weight.dtype == torch.float32
    assert layer.weight.device.type == "cpu"
    for use in (lambda w: w @ torch.ones(4), lambda w: w.sum(), lambda w: w.float() + 1):
        with pytest.raises(NotAdaptableError, match="mixer is not called by the model"):
            use(layer.weight)


class Attention(nn.Module):
    layer_idx = 0


class BothWays(Attention):
    is_causal = False


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"s_aux": torch.zeros(2)}, "attention with s_aux"),
        ({"position_bias": torch.zeros(2), "dropout": 0.0}, "attention with position_bias"),
        ({"attention_mask": torch.zeros(1, 1, 5, 5)}, "a mask of the model's own"),
        ({"is_causal": False}, "not causal"),
        ({"dropout": 0.1}, "attention with dropout"),
    ],
)
def test_what_a_layer_asks_for_and_is_not_computed_is_refused(asked: dict[str, Any], message: str):
    q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
    plan = SegmentAttention([Segment(5, None)])
    arguments: dict[str, Any] = {
        "attention_mask": None,
        "plan": plan,
        "scaling": None,
        "position_ids": None,
    }
    attention_forward(Attention(), q, k, v, **arguments)
    with pytest.raises(ValueError, match=message):
        attention_forward(Attention(), q, k, v, **{**arguments, **asked})


def test_attention_both_ways_is_refused():
    module = BothWays()
    q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
    with pytest.raises(ValueError, match="not causal"):
        attention_forward(module, q, k, v, None, plan=SegmentAttention([Segment(5, None)]))


def test_state_between_tokens_is_found_and_run_in_rows(tmp_path: Path, caplog):
    """A convolution over the tokens: wrong as soon as sequences share a pass."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    Lfm2ForCausalLM(config).save_pretrained(tmp_path / "model")
    with caplog.at_level("INFO"):
        body = decoder.Decoder(tmp_path / "model", CPU)._body
    assert isinstance(body, RowsBody)
    assert "Lfm2ForCausalLM runs in rows: " in caplog.text


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    taken: list[Any] = []
    take = comparison.take_probe

    def spied(*arguments: Any) -> Any:
        taken.append(take(*arguments))
        return taken[-1]

    monkeypatch.setattr(loading, "take_probe", spied)
    return taken


def test_a_second_start_compares_nothing_until_something_changes(
    tmp_path: Path, probes: list[Any], monkeypatch: pytest.MonkeyPatch
):
    folder = Path(save_tiny_model(tmp_path / "model", FAMILY))
    for _ in range(2):
        assert isinstance(decoder.Decoder(folder, CPU)._body, PackedBody)
    assert len(probes) == 1
    # as many weights, and those that are looked at are the same
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    os.utime(folder / "model.safetensors", ns=(1, 1))
    decoder.Decoder(folder, CPU)
    assert len(probes) == 2
    monkeypatch.setattr(notes, "versions", lambda: {"engine": "another"})
    decoder.Decoder(folder, CPU)
    assert len(probes) == 3


def test_notes_that_cannot_be_written_or_read_cost_a_comparison(
    tmp_path: Path, probes: list[Any], monkeypatch: pytest.MonkeyPatch, caplog
):
    folder = save_tiny_model(tmp_path / "model", FAMILY)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(notes, "notes_file", lambda: tmp_path / "file" / "notes.json")
    decoder.Decoder(folder, CPU)
    assert "the model is compared again next time" in caplog.text
    (tmp_path / "torn.json").write_text('{"a": ')
    monkeypatch.setattr(notes, "notes_file", lambda: tmp_path / "torn.json")
    for _ in range(2):
        decoder.Decoder(folder, CPU)
    assert len(probes) == 2


def test_old_notes_go_first(own_notes: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(notes, "_MAX_NOTES", 2)
    for key in "abc":
        notes.write_note(key, notes.Note("rows", (key,)))
    assert [notes.read_note(key) for key in "abc"] == [
        None,
        notes.Note("rows", ("b",)),
        notes.Note("rows", ("c",)),
    ]


def test_decoding_is_part_of_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from training.backends.local.attention import CacheBlock

    right = CacheBlock.attend
    monkeypatch.setattr(CacheBlock, "attend", lambda *inputs: right(*inputs).flip(1))
    body = decoder.Decoder(save_tiny_model(tmp_path / "model", FAMILY), CPU)._body
    assert isinstance(body, RowsBody)


@pytest.mark.parametrize(
    ("family", "mode", "passes"),
    [("llama_tied", None, 4), (FAMILY, comparison.MODES[0], 4), (FAMILY, comparison.MODES[2], 5)],
    ids=["llama", "packed", "rows"],
)
def test_every_row_of_every_pass_is_part_of_the_comparison(
    family: str,
    mode: comparison.Mode | None,
    passes: int,
    tmp_path: Path,
    probes: list[Any],
    monkeypatch: pytest.MonkeyPatch,
):
    """Prefills with and without a cache, and three decoded tokens."""
    if mode is not None:
        monkeypatch.setattr(decoder, "MODES", (mode,))
    made = decoder.Decoder(save_tiny_model(tmp_path / "model", family), CPU)
    hidden = made.hidden
    seen: list[int] = []
    wrong: tuple[int, int] | None = None

    def spied(*inputs: Any) -> torch.Tensor:
        out = hidden(*inputs)
        if wrong is not None and len(seen) == wrong[0]:
            out = out.clone()
            out[wrong[1]] *= 1.1
        seen.append(len(out))
        return out

    monkeypatch.setattr(made, "hidden", spied)
    allowed = probes[0].tolerance(made.dtype)
    assert comparison.largest_difference(made, probes[0]) <= allowed
    rows_of_passes = list(seen)
    assert len(rows_of_passes) == passes
    for number, rows in enumerate(rows_of_passes):
        for wrong in [(number, row) for row in range(rows)]:
            seen.clear()
            assert comparison.largest_difference(made, probes[0]) > allowed, wrong


def test_fast_attention_without_the_soft_cap_is_found(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(decoder, "MODES", comparison.MODES[1:])
    with caplog.at_level("INFO"):
        decoder.Decoder(save_tiny_model(tmp_path / "model", FAMILY), CPU)
    assert "Gemma2ForCausalLM runs in rows, eager: 0.5" in caplog.text


def test_no_mode_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(comparison.Probe, "tolerance", lambda *_: -1.0)
    with pytest.raises(
        ValueError, match=r"Gemma2ForCausalLM is not supported.*nats off when packed"
    ):
        decoder.Decoder(save_tiny_model(tmp_path / "model", FAMILY), CPU)
