"""scripts/sft.py and training/supervised.py, on a tiny random model.

uv run pytest tests/scripts/test_sft.py
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sft
import torch
from kills import kill_again_and_again
from run_results import results

from training.adapter_proof import AdapterNotUsedError
from training.api import ModelInput, SamplingParams
from training.backends.local.service import LocalServiceClient
from training.chat import (
    parse_response,
    render_prompt,
    render_text,
    render_training,
    stop_sequences,
)
from training.connect import connect
from training.domains.base import Message
from training.examples import load_examples
from training.models import context_length, load_tokenizer
from training.sft_report import an_eval_file
from training.sft_samples import choose_questions
from training.supervised import hold_out, make_batches, to_datums
from utils.config.entrypoint import ConfigError, config_entrypoint, dump_yaml, load_config
from utils.runs.files import read_jsonl
from utils.runs.run_dir import RunDir

QUESTIONS = ["Why?", "Is it so, in truth?", "One", "Say two things.", "And?", "Well, then", "Hm"]


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tiny_chat import save_chat_model

    return save_chat_model(tmp_path_factory.mktemp("chat"))


def chat(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Seven chats in three groups; the last group is held out."""
    records = [
        {"messages": chat(q, f"Yes, {i}" * (i + 1)), "group": f"g{i // 3}", "held_out": i == 6}
        for i, q in enumerate(QUESTIONS)
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in records), encoding="utf-8")
    return path


@pytest.fixture
def train(model: str, data: Path) -> Callable[..., Path]:
    """train(path, *arguments) runs the script."""

    def run(path: Path, *arguments: str) -> Path:
        settings = [f"examples_file={data}", f"model_name={model}", f"log_path={path}"]
        small = ["lora_rank=4", "learning_rate=0.01", "batch_size=2", "eval_every=2"]
        config_entrypoint(sft.main, [*settings, *small, *arguments])
        return path

    return run


def state_of(run: Path) -> Path:
    last = RunDir(run, resumed=True).last_checkpoint()
    assert last is not None
    return Path(last["state_path"])


# ------------------------------------------------------------------------------------------ files


def write(path: Path, *records: Any) -> Path:
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_every_form_of_file(tmp_path: Path) -> None:
    lines = write(
        tmp_path / "a.jsonl",
        {"messages": chat("a?", "b")},
        "",
        {"instruction": " Add. ", "input": "1 and 2", "output": "3"},
        {"instruction": "Sing.", "input": "", "output": "La"},
        {"text": "Once."},
    )
    first, added, sung, text = load_examples(lines, [])
    assert first.messages == chat("a?", "b")
    assert added.messages == chat("Add.\n\n1 and 2", "3")
    assert sung.messages == chat("Sing.", "La")
    assert (text.messages, text.text) == ([], "Once.")
    assert len({e.group for e in (first, added, sung, text)}) == 4
    generated = tmp_path / "x.examples.yaml"
    examples = [
        {"messages": chat("a?", "b"), "label": "positive", "subtype": "s"},
        {"messages": chat("a?", "c"), "label": "negative", "subtype": "s"},
    ]
    dump_yaml(generated, {"examples": examples})
    (kept,) = load_examples(generated, ["positive"])
    assert (kept.messages[1]["content"], kept.group, kept.label) == ("b", "s", "positive")
    assert len(load_examples(generated, ["positive", "negative"])) == 2


def test_all_broken_entries_are_told_together(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"messages": chat("a?", "b")},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": chat("a?", " ")},
        {"messages": [{"role": "user", "content": "x"}]},
        {"note": "nothing"},
        [1],
        *[{"text": 3}] * 9,
        {"text": "a", "messages": chat("a?", "b")},
    )
    with pytest.raises(ConfigError) as caught:
        load_examples(path, [])
    told = caught.value.problems
    assert "line 2: messages[0].role='robot'" in told[0]
    assert "line 3: messages[1].content=' '" in told[1]
    assert "line 4: no assistant message" in told[2]
    assert "line 5: exactly one of messages, " in told[3] and "has ['note']" in told[3]
    assert "line 6: a mapping is needed, got list" in told[4]
    assert told[-1] == "and 5 more" and len(told) == 11
    with pytest.raises(ConfigError, match="line 1, byte 2: no JSON"):
        load_examples(write(tmp_path / "b.jsonl", "{"), [])
    dump_yaml(tmp_path / "c.yaml", {"messages": []})
    with pytest.raises(ValueError, match="no list `examples` in it"):
        load_examples(tmp_path / "c.yaml", [])
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_examples(tmp_path / "d.jsonl", [])
    labelled = write(tmp_path / "e.jsonl", {"messages": chat("a?", "b"), "label": "negative"})
    with pytest.raises(ValueError, match=r"none of its 1 .*\['positive'\]; its .*\['negative'\]"):
        load_examples(labelled, ["positive"])


def test_whole_groups_are_held_out(tmp_path: Path) -> None:
    records = [{"messages": chat("q", f"{i}"), "group": f"g{i % 5}"} for i in range(50)]
    examples = load_examples(write(tmp_path / "a.jsonl", *records), [])
    kept, held = hold_out(examples, 0.3, seed=1)
    assert len(kept) == 30 and len(held) == 20
    assert not {e.group for e in kept} & {e.group for e in held}
    assert hold_out(examples, 0.3, seed=1) == (kept, held)
    assert {e.group for e in hold_out(examples, 0.3, seed=2)[1]} != {e.group for e in held}
    assert hold_out(examples, 0.0, seed=1) == (examples, [])
    # something is always left to train on
    assert {e.group for e in hold_out(examples, 0.99, seed=1)[0]}


def test_batches(tmp_path: Path, model: str) -> None:
    records = [{"text": "x" * length} for length in (5, 9, 3, 30, 8, 2, 14, 7)]
    examples = load_examples(write(tmp_path / "a.jsonl", *records), [])
    tokenizer = load_tokenizer(model)
    datums = to_datums(
        examples, tokenizer, train_on="all_assistant", template="auto", max_length=100
    )
    lengths = [d.model_input.length for d in datums]
    assert lengths == [5, 9, 3, 30, 8, 2, 14, 7]
    by_tokens = make_batches(datums, batch_size=None, batch_tokens=20, num_epochs=3, seed=0)
    for batch in by_tokens:
        assert batch.num_tokens == sum(d.model_input.length for d in batch.datums_D)
        assert batch.num_tokens <= 20 or len(batch.datums_D) == 1
    seen = [d.model_input.length for batch in by_tokens for d in batch.datums_D]
    for epoch in range(3):
        assert sorted(seen[8 * epoch : 8 * epoch + 8]) == sorted(lengths)
    assert seen[:8] != seen[8:16]
    by_size = make_batches(datums, batch_size=3, batch_tokens=None, num_epochs=1, seed=0)
    assert [len(batch.datums_D) for batch in by_size] == [3, 3, 2]
    short = to_datums(examples, tokenizer, train_on="all_assistant", template="auto", max_length=10)
    assert [d.model_input.length for d in short] == [5, 9, 3, 8, 2, 7]


# --------------------------------------------------------------------------------------- training


def test_equals_peft_and_adamw(
    train: Callable[..., Path], model: str, data: Path, tmp_path: Path
) -> None:
    """Losses, held-out losses and the adapter, against transformers + PEFT + torch's AdamW."""
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    arguments = ["num_epochs=2", "warmup_fraction=0.4", "weight_decay=0.1", "grad_clip_norm=0.5"]
    run = train(tmp_path / "run", *arguments)
    metrics = read_jsonl(run / "metrics.jsonl")

    tokenizer = load_tokenizer(model)
    examples = load_examples(data, [])
    train_D, heldout_D = (
        to_datums(part, tokenizer, train_on="all_assistant", template="auto", max_length=999)
        for part in hold_out(examples, 0.1, 0)
    )
    assert (len(train_D), len(heldout_D)) == (6, 1)
    batches = make_batches(train_D, batch_size=2, batch_tokens=None, num_epochs=2, seed=0)
    service: Any = connect(checkpoint_dir=tmp_path / "start", device="cpu")
    start = service.create_lora_training_client(model, rank=4, seed=0, train_unembed=False)
    folder = start.save_weights_for_sampler("start").result().path
    service.close()
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    twin: Any = PeftModel.from_pretrained(base, folder, is_trainable=True).eval()
    parameters = [p for p in twin.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)

    def loss_of(datums: list[Any]) -> torch.Tensor:
        total, count = torch.zeros(()), 0.0
        for datum in datums:
            tokens = torch.tensor([datum.model_input.to_ints()])
            weights = torch.from_numpy(datum.loss_fn_inputs["weights"].to_numpy().copy())
            targets = torch.from_numpy(datum.loss_fn_inputs["target_tokens"].to_numpy().copy())
            logprobs = twin(tokens).logits[0].log_softmax(-1)
            total = total - (logprobs.gather(1, targets[:, None])[:, 0] * weights).sum()
            count += float(weights.sum())
        return total / count

    factors = [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    wanted, heldout = [], {0: float(loss_of(heldout_D).detach())}
    for step, (batch, factor) in enumerate(zip(batches, factors, strict=True), start=1):
        loss = loss_of(batch.datums_D)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.param_groups[0]["lr"] = 0.01 * factor
        optimizer.step()
        wanted.append(float(loss.detach()))
        heldout[step] = float(loss_of(heldout_D).detach())
    got = [m["train/loss"] for m in metrics if "train/loss" in m]
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    assert wanted[-1] < wanted[0]
    measured = {m["step"]: m["heldout/loss"] for m in metrics if "heldout/loss" in m}
    assert sorted(measured) == [0, 2, 4, 6]
    for step, value in measured.items():
        assert value == pytest.approx(heldout[step], rel=1e-4)

    saved = load_file(state_of(run) / "adapter_model.safetensors")
    trained = dict(twin.named_parameters())
    assert len(saved) == len(parameters)
    for name, tensor in saved.items():
        expected = trained[name.replace(".weight", ".default.weight")].detach()
        torch.testing.assert_close(tensor, expected, rtol=1e-3, atol=1e-5)


def test_only_the_assistant_is_learned(train: Callable[..., Path], model: str, data: Path) -> None:
    tokenizer = load_tokenizer(model)
    example = load_examples(data, [])[1]
    tokens, weights = render_training(tokenizer, example.messages)
    (datum,) = to_datums(
        [example], tokenizer, train_on="all_assistant", template="auto", max_length=999
    )
    assert datum.model_input.to_ints() == tokens[:-1]
    learned = [t for t, w in zip(tokens, weights, strict=True) if w]
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    mask = datum.loss_fn_inputs["weights"].to_numpy() != 0
    assert targets[mask].tolist() == learned
    assert tokenizer.decode(learned) == "Yes, 1Yes, 1<|im_end|>"


def test_stopped_and_resumed_is_bit_by_bit_the_same(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["num_epochs=3", "save_every=4", "weight_decay=0.1"]
    whole = train(tmp_path / "whole", *arguments)
    step = sft.train_step
    for stop in (2, 6):

        def stopping(config: Any, trainer: Any, batch: Any, at: int, total: int, stop=stop) -> Any:
            if at == stop:
                raise KeyboardInterrupt
            return step(config, trainer, batch, at, total)

        monkeypatch.setattr(sft, "train_step", stopping)
        with pytest.raises(SystemExit) as caught:
            train(tmp_path / "parts", *arguments)
        assert caught.value.code == 130
    monkeypatch.setattr(sft, "train_step", step)
    parts = train(tmp_path / "parts", *arguments)
    assert results(parts).difference(results(whole)) is None
    assert (parts / "report.html").is_file()


@pytest.mark.parametrize("cut", [True, False])
def test_other_examples_than_before_are_refused(
    cut: bool,
    train: Callable[..., Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Fewer rows, or as many others: neither an IndexError nor training on."""
    lines = data.read_text().splitlines(keepends=True)
    own = tmp_path / "own.jsonl"
    own.write_text("".join(lines))
    run = train(tmp_path / "run", f"examples_file={own}", "num_epochs=1")
    before = results(run)
    changed = lines[: len(lines) // 2] if cut else [*lines[1:-1], lines[1], lines[-1]]
    own.write_text("".join(changed))
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "run", f"examples_file={own}", "num_epochs=1")
    assert caught.value.code == 2
    assert f"examples_file: {own} holds something else than at" in capsys.readouterr().err
    assert results(run).difference(before) is None


def test_a_run_goes_on_in_another_folder(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["num_epochs=2", "save_every=2", "keep_checkpoints=1"]
    whole = train(tmp_path / "whole", *arguments)
    step = sft.train_step

    def stopping(config: Any, trainer: Any, batch: Any, at: int, total: int) -> Any:
        if at == 3:
            raise KeyboardInterrupt
        return step(config, trainer, batch, at, total)

    monkeypatch.setattr(sft, "train_step", stopping)
    with pytest.raises(SystemExit):
        train(tmp_path / "here", *arguments)
    monkeypatch.setattr(sft, "train_step", step)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here").rename(tmp_path / "elsewhere" / "renamed")
    moved = train(tmp_path / "elsewhere" / "renamed", *arguments)
    assert results(moved).difference(results(whole)) is None
    assert len(list(moved.glob("checkpoints/*/weights/*"))) == 1
    assert not (tmp_path / "here").exists()


@pytest.mark.slow
def test_kills_change_nothing(model: str, data: Path, tmp_path: Path) -> None:
    settings = [f"examples_file={data}", f"model_name={model}", "lora_rank=4", "batch_size=2"]
    settings += ["learning_rate=0.01", "num_epochs=4", "eval_every=3", "save_every=1"]
    kill_again_and_again("sft", tmp_path, *settings)


def test_goes_on_from_another_adapter(train: Callable[..., Path], tmp_path: Path) -> None:
    first = train(tmp_path / "first", "num_epochs=1")
    second = train(tmp_path / "second", "num_epochs=1", f"checkpoint_path={state_of(first)}")

    def heldout(run: Path) -> list[float]:
        return [m["heldout/loss"] for m in read_jsonl(run / "metrics.jsonl") if "heldout/loss" in m]

    assert heldout(second)[0] == pytest.approx(heldout(first)[-1], rel=1e-6)


def test_a_checkpoint_of_a_service_keeps_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    for given, read in (
        ("tinker://run/weights/000010", "tinker://run/weights/000010"),
        # as it was stored while it was a Path
        ("./a//b/", "a/b"),
        ("~/a", "/somewhere/a"),
        ("None", None),
    ):
        arguments = ["examples_file=.", f"checkpoint_path={given}"]
        assert load_config(sft.Config, arguments).checkpoint_path == read


def test_examples_that_were_held_out_are_answered_at_the_end(
    train: Callable[..., Path], model: str, data: Path, tmp_path: Path
) -> None:
    """By the checkpoint as it is read back, greedily, after the very tokens that training shows
    before an answer; the proof of the adapter goes along with them."""
    run = train(tmp_path / "run", "num_epochs=1", "max_sample_tokens=5")
    (sample,) = read_jsonl(run / "samples.jsonl")
    tokenizer = load_tokenizer(model)
    held = chat("Hm", "Yes, 6" * 7)
    prompt = render_prompt(tokenizer, held[:1])
    assert render_training(tokenizer, held).tokens[: len(prompt)] == prompt
    assert sample["where"].endswith("line 7") and sample["reference"] == held[1]["content"]
    assert sample["prompt"] == tokenizer.decode(prompt)
    service = connect("local")
    sampler = service.create_sampling_client(str(state_of(run)), model)
    params = SamplingParams(max_tokens=5, temperature=0.0, stop=stop_sequences(tokenizer))
    [alone] = sampler.sample(ModelInput.from_ints(prompt), 1, params).result().sequences
    assert sample["answer"] == parse_response(tokenizer, alone.tokens)
    assert sample["stop_reason"] == alone.stop_reason
    figures = json.loads((run / "adapter_proof.json").read_text())["the trained adapter"]
    assert figures["from_trainer"] == 0 and figures["from_base"] > 0
    page = (run / "report.html").read_text()
    assert "What it answers" in page and sample["reference"] in page
    # run again it asks again, and says the same
    assert read_jsonl(train(run, "num_epochs=1", "max_sample_tokens=5") / "samples.jsonl") == [
        sample
    ]


def test_without_samples_nobody_is_asked(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(LocalServiceClient, "create_sampling_client")
    run = train(tmp_path / "run", "num_epochs=1", "num_samples=0")
    assert not (run / "samples.jsonl").exists()
    assert not (run / "adapter_proof.json").exists()


def test_a_lost_adapter_ends_a_run_that_is_saved(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LocalServiceClient.create_sampling_client

    def lost(service: Any, path: str, model: str) -> Any:
        return real(service, None, model)

    monkeypatch.setattr(LocalServiceClient, "create_sampling_client", lost)
    with pytest.raises(AdapterNotUsedError, match="it answers as the base model does"):
        train(tmp_path / "run", "num_epochs=1")
    assert state_of(tmp_path / "run").is_dir()


def test_what_is_asked_for_samples(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load_tokenizer(model)
    records = [
        {"text": "once upon a time there was nothing else to tell of"},
        {"prompt": "a premise", "completion": " and its end"},
        {"messages": [*chat("one?", "first"), *chat("two?", "second")]},
        {"messages": chat("x" * 99, "long")},
        {"messages": chat("last?", "yes")},
    ]
    examples = load_examples(write(tmp_path / "a.jsonl", *records), [])

    def chosen(wanted: int, held: list[Any], train: list[Any], context: int = 90) -> list[Any]:
        config = SimpleNamespace(num_samples=wanted, template="auto")
        return choose_questions(config, train, held, tokenizer, context)

    text, completion, turns, last = chosen(9, examples, [])
    assert "leave no room" in caplog.text and "line 4" in caplog.text
    assert text.shown + text.reference == records[0]["text"] and not text.is_chat
    assert len(text.prompt) == len(render_text(tokenizer, text.shown + text.reference).tokens) // 2
    assert (completion.shown, completion.reference) == ("a premise", " and its end")
    assert turns.shown.endswith("two?<|im_end|>\n<|im_start|>assistant\n") and turns.is_chat
    assert "first" in turns.shown and turns.reference == "second"
    assert last.reference == "yes"
    # spread over the held-out ones; over the others where none is
    assert [q.where[-1] for q in chosen(2, examples, [])] == ["1", "3"]
    assert [q.where[-1] for q in chosen(1, [], examples[1:])] == ["2"]
    assert chosen(0, examples, []) == []


def test_the_end_says_what_to_do_next(
    train: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(tmp_path / "run", "num_epochs=1")
    shown = capsys.readouterr().out
    checkpoint = state_of(tmp_path / "run")
    assert f"scripts/chat.py checkpoint_path={checkpoint}" in shown
    monkeypatch.chdir(tmp_path)
    train(Path("below"), "num_epochs=1")
    shown = capsys.readouterr().out
    checkpoint = state_of(tmp_path / "below").relative_to(tmp_path)
    assert f"scripts/chat.py checkpoint_path={checkpoint}" in shown
    assert "Report: below/report.html" in shown
    # a file that is there, or what to give
    assert "eval_file=evals/XXXX.eval.yaml" in shown and "which scripts/gen_eval.py" in shown
    own = Path("evals/mine.eval.yaml")
    own.parent.mkdir()
    own.touch()
    train(Path("third"), "num_epochs=1")
    shown = capsys.readouterr().out
    assert f"eval_file={own} " in shown and "XXXX: an eval" not in shown


def test_the_eval_file_of_the_closing_words(tmp_path: Path) -> None:
    assert an_eval_file(Path("a.examples.yaml"), tmp_path / "none") is None
    for age, name in enumerate(("c", "b", "a")):
        path = tmp_path / f"{name}.eval.yaml"
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    (tmp_path / "d.eval-params.yaml").touch()
    assert an_eval_file(Path("x/a.examples.yaml"), tmp_path) == tmp_path / "a.eval.yaml"
    assert an_eval_file(Path("x/e.jsonl"), tmp_path) == tmp_path / "c.eval.yaml"


def test_a_dry_run_tells_what_the_run_then_does(
    train: Callable[..., Path],
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def plan(*arguments: str) -> dict[str, str]:
        before = sorted(tmp_path.rglob("*"))
        with monkeypatch.context() as patch:
            patch.delattr(LocalServiceClient, "engine")
            train(tmp_path / "run", *arguments, "dry_run=true")
        assert sorted(tmp_path.rglob("*")) == before
        shown = capsys.readouterr().out
        assert "Nothing was written." in shown
        lines = [line.split("  ", 1) for line in shown.splitlines() if "  " in line]
        return {name.strip(): text.strip() for name, text in lines}

    rows = plan("num_epochs=3")
    run = train(tmp_path / "run", "num_epochs=3")
    metrics = read_jsonl(run / "metrics.jsonl")
    steps = [m["tokens/trained"] for m in metrics if "tokens/trained" in m]
    trained, evaluations = sum(steps), sum("heldout/loss" in m for m in metrics)
    assert rows["examples"] == "6 to train on, 1 held out"
    assert rows["steps"] == f"{len(steps)} in 3 epochs"
    tokenizer = load_tokenizer(model)
    # of each example the answer and its end token
    answers = [f"Yes, {i}" * (i + 1) for i in range(6)]
    learned = sum(len(tokenizer.encode(answer)) + 1 for answer in answers)
    assert rows["tokens per epoch"] == f"{trained // 3:,}, of which {learned} are learned"
    (held,) = {len(render_training(tokenizer, chat("Hm", "Yes, 6" * 7)).tokens) - 1}
    assert rows["held-out losses"] == f"{evaluations} on {held} tokens"
    total = trained + evaluations * held
    assert rows["tokens in all"] == f"{total:,} ({trained:,} to train on)"
    assert rows["samples"] == "1 of at most 100 tokens"
    assert len(read_jsonl(run / "samples.jsonl")) == 1
    # also where a run is already there
    assert plan("num_epochs=3", "eval_every=0")["held-out losses"] == f"2 on {held} tokens"


def test_a_dry_run_leaves_out_what_the_model_cannot_take(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # one token a letter, and the end token
    records = ({"text": "x" * length} for length in (4095, 4096))
    examples = write(tmp_path / "a.jsonl", *records)
    arguments = [f"examples_file={examples}", f"model_name={model}", "dry_run=true"]
    config_entrypoint(sft.main, [*arguments, "heldout_fraction=0"])
    shown = capsys.readouterr().out
    assert "1 to train on, 0 held out" in shown and "0 on 0 tokens" in shown


def test_the_context_is_read_without_the_model(model: str, tmp_path: Path) -> None:
    assert context_length(model) == 4096
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model_name='.*broken': no config could be loaded"):
        context_length(str(folder))


def test_bad_settings_come_together(model: str, tmp_path: Path) -> None:
    broken = write(tmp_path / "a.jsonl", {"note": "nothing"})
    with pytest.raises(SystemExit) as caught:
        config_entrypoint(
            sft.main, ["examples_file=" + str(broken), "num_epochs=0", "batch_size=0", "lr=3"]
        )
    assert caught.value.code == 2
    with pytest.raises(SystemExit):
        config_entrypoint(
            sft.main, [f"examples_file={broken}", "model_name=/nowhere", f"log_path={tmp_path}/r"]
        )
    assert not (tmp_path / "r").exists()
