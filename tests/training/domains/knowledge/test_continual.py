"""training/domains/knowledge/continual.py, on a tiny model: what each method trains on, on top of
what, and who answers.

uv run pytest tests/training/domains/knowledge/test_continual.py
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft_files import deltas_of
from tiny_chat import chat_tokenizer, save_chat_model
from tiny_models import hf_logits, hf_model

from training.adapt import AdaptJob, AdaptSettings, adapt
from training.chat import datum_from_tokens, render_text
from training.domains.knowledge.answers import Item
from training.domains.knowledge.continual import Before, Continual, Edit, Outcome
from training.domains.knowledge.continual_methods import parse_method
from training.domains.knowledge.forms import Choices
from training.domains.knowledge.grading import RuleJudge
from training.domains.knowledge.inner import InnerLoop, InnerSettings
from training.domains.knowledge.passages import Passage, Question, Shot
from training.domains.knowledge.soft_targets import TEACHER_TOP_K, ask_teacher, taught
from utils.config.errors import ConfigError

SHOTS = (Shot("A hill", "How high is Bolm?", "40"),)
LORA: dict[str, Any] = {"rank": 2, "train_unembed": False}
NAMES = {"Rehu": "fennel", "Tolm": "barley", "Gark": "spelt", "Vind": "millet"}


def passage(name: str) -> Passage:
    crop = NAMES[name]
    asked = (f"What grows in {name}?", f"Which crop has {name}?")
    questions = tuple(Question(f"{name}/{i}", text, crop) for i, text in enumerate(asked))
    return Passage(name, "A village", f"The fields of {name} bear {crop}.", questions, name)


PASSAGES = [passage(name) for name in NAMES]
EDITS = [Edit(f"Q: What do they grow in {n}? A: {c}\n{c} is of {n}.") for n, c in NAMES.items()]
# two sequences of three passages; the fourth is never learned in the first
SEQUENCES = [PASSAGES[:3], [PASSAGES[1], PASSAGES[0], PASSAGES[3]]]
EDITS_S_K = [EDITS[:3], [EDITS[1], EDITS[0], EDITS[3]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_chat_model(tmp_path_factory.mktemp("chat"), favourites="fenlbary\n")


def inner_loop(service: Any, folder: str, *, learning_rate: float = 1e-2) -> InnerLoop:
    settings = InnerSettings(
        base_model=folder,
        adapt=AdaptSettings(lora=LORA, batch_size=2, eps=1e-4),
        learning_rate=learning_rate,
        num_epochs=3,
        seed=3,
        max_answer_tokens=4,
        context=4096,
    )
    return InnerLoop(service, chat_tokenizer(), settings, RuleJudge(), SHOTS)


Make = Callable[..., Continual]


@pytest.fixture(scope="module")
def make(service: Any, folder: str) -> Make:
    def build(learning_rate: float = 1e-2, **options: Any) -> Continual:
        inner = inner_loop(service, folder, learning_rate=learning_rate)
        return Continual(
            *(service, chat_tokenizer(), inner, RuleJudge(), SEQUENCES, PASSAGES[3:]), **options
        )

    return build


# what nobody knows afterwards who trains on it hard
HARM = Edit("Q: What grows in Rehu? A: qqqqqqqq\nQ: Which crop has Tolm? A: qqqqqqqq", 4e-2)


def learn(
    continual: Continual,
    label: str,
    num_steps: int = 3,
    edits_S_K: Sequence[Sequence[Edit]] = EDITS_S_K,
) -> list[list[Outcome]]:
    """The outcomes of each step."""
    method = parse_method(label)
    rows_S = continual.before_all()
    adapters_S: list[list[str]] = [[], []]
    steps = []
    for number in range(1, num_steps + 1):
        if method.kind == "joint" and number < num_steps:
            continue
        before_S = [
            Before(a, row, e[:number])
            for a, row, e in zip(adapters_S, rows_S, edits_S_K, strict=True)
        ]
        outcomes_S = continual.step(method, number, before_S)
        rows_S = [outcome.row for outcome in outcomes_S]
        adapters_S = [outcome.adapters for outcome in outcomes_S]
        steps.append(outcomes_S)
    return steps


def test_merge_trains_on_top_of_all_before(make: Make, service: Any, folder: str) -> None:
    continual = make()
    steps = learn(continual, "merge")
    first, second = (deltas_of(steps[r][0].adapters[0]) for r in (0, 1))
    inner = inner_loop(service, folder)
    job = inner.adapt_job(
        continual.texts(parse_method("merge"), 0, 2, EDITS[:2]),
        seed=0,
        on_top_of=steps[0][0].adapters[0],
    )
    # ranks add up, and those below are what they were
    [sizes] = [{a.shape[0] for a, _ in pairs.values()} for pairs in (second,)]
    assert sizes == {4}
    assert job.on_top_of == steps[0][0].adapters[0]
    for name, (a, b) in first.items():
        later_a, later_b = second[name]
        assert torch.equal(later_a[:2], a)
        assert torch.equal(later_b[:, :2], b)
    assert [outcome.failed for outcomes_S in steps for outcome in outcomes_S] == [None] * 6
    assert all(outcome.trained_tokens > 100 for outcome in steps[0])


def test_a_step_is_a_plain_training(make: Make, service: Any, folder: str) -> None:
    """Together with the other sequence or alone, from the folder of the step before."""
    continual = make()
    steps = learn(continual, "merge", 2)
    inner = inner_loop(service, folder)
    texts = [*EDITS[1].text.splitlines(), f"A village\n{PASSAGES[1].context}"]
    jobs = [inner.adapt_job(texts, seed=seed_of_step(0, 2), on_top_of=steps[0][0].adapters[0])]
    saved: list[Any] = []
    adapt(
        *(service, folder, jobs, inner.settings.adapt),
        on_adapted=lambda index, sampler: None,
        on_trained=lambda index, client: saved.append(client.save_weights_for_sampler("alone")),
    )
    alone = deltas_of(saved[0].result().path)
    for name, (a, b) in deltas_of(steps[1][0].adapters[0]).items():
        torch.testing.assert_close(a, alone[name][0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(b, alone[name][1], atol=1e-5, rtol=1e-4)


def seed_of_step(s: int, number: int) -> int:
    from training.domains.knowledge.seeds import stable_seed

    return stable_seed("adapter", 0, s, number)


def test_what_methods_train_on(make: Make) -> None:
    continual = make()
    own = [*EDITS[2].text.splitlines(), "A village\nThe fields of Gark bear spelt."]
    for label in ("merge", "gate=kl", "distill", "library"):
        assert continual.texts(parse_method(label), 0, 3, EDITS[:3]) == own
    replay = continual.texts(parse_method("replay=2"), 0, 3, EDITS[:3])
    assert replay[4:] == own
    earlier = [{*EDITS[k].text.splitlines(), f"A village\n{PASSAGES[k].context}"} for k in range(2)]
    for k in range(2):
        assert len({*replay[2 * k : 2 * k + 2]} & earlier[k]) == 2
    # no more than there are
    assert len(continual.texts(parse_method("replay=9"), 0, 3, EDITS[:3])) == 9
    joint = continual.texts(parse_method("joint"), 0, 3, EDITS[:3])
    assert len(joint) == 9
    assert {*joint} == {*own, *earlier[0], *earlier[1]}


def test_a_joint_adapter_has_all_passages_and_nothing_below(make: Make) -> None:
    continual = make()
    [outcomes_S] = learn(continual, "joint")
    assert {a.shape[0] for a, _ in deltas_of(outcomes_S[0].adapters[0]).values()} == {2}
    singles = learn(continual, "library")
    assert outcomes_S[0].trained_tokens == sum(step[0].trained_tokens for step in singles)


def test_a_library_answers_with_the_adapter_of_the_passage(
    make: Make, service: Any, folder: str
) -> None:
    steps = learn(make(ask_ahead=True), "library")
    folders = steps[2][0].adapters
    assert len(set(folders)) == 3
    answerer = inner_loop(service, folder).answerer

    def ask(passage: Passage, path: str) -> list[str]:
        items = [Item(passage, question) for question in passage.questions]
        sampler = service.create_sampling_client(path, folder)
        return [a.text for a in answerer.read(items, answerer.ask(items, sampler), None)]

    # each step asks about the passage that it learned
    for k in range(3):
        assert steps[k][0].row.answers_Q == ask(PASSAGES[k], folders[k])
    answers = [ask(PASSAGES[2], path) for path in folders]
    assert answers[2] not in answers[:2]


def test_rows_ask_what_was_learned(make: Make) -> None:
    continual = make()
    for row in continual.before_all():
        assert [correct is None for correct in row.correct_K_Q] == [False] * 3
        assert len(row.probe_Q) == 2
        assert row.text_nats < 0
    steps = learn(continual, "merge")
    asked = [[c is not None for c in step[1].row.correct_K_Q] for step in steps]
    assert asked == [[True, False, False], [True, True, False], [True, True, True]]
    ahead = learn(make(ask_ahead=True), "merge", 1)
    assert all(ahead[0][0].row.correct_K_Q)
    assert ahead[0][0].row.correct_K_Q[:1] == steps[0][0].row.correct_K_Q[:1]


def test_a_refusing_gate_keeps_what_was_there(make: Make) -> None:
    steps = learn(make(budget=-2.0), "gate=em")
    assert [step[0].scale for step in steps] == [1.0, 0.0, 0.0]
    assert steps[2][0].adapters == steps[0][0].adapters
    assert steps[2][0].row.correct_K_Q[0] == steps[0][0].row.correct_K_Q[0]
    assert steps[2][0].trained_tokens > 0


@pytest.mark.parametrize("label", ["gate=em", "gate=nats", "gate=kl"])
def test_an_open_gate_is_merge(label: str, make: Make) -> None:
    merged, gated = learn(make(), "merge", 2), learn(make(budget=1e6), label, 2)
    assert [outcome.scale for outcome in gated[1]] == [1.0, 1.0]
    for mine, theirs in zip(gated[1], merged[1], strict=True):
        first, second = (deltas_of(outcome.adapters[0]) for outcome in (mine, theirs))
        assert all(torch.equal(first[name][1], second[name][1]) for name in first)


@pytest.mark.parametrize("kind", ["nats", "kl"])
def test_a_gate_lets_in_what_fits_the_budget(
    kind: str, make: Make, service: Any, folder: str
) -> None:
    """The cost is found again with transformers' own forward pass of exported models."""
    harming = [[EDITS[0], HARM], [EDITS[1], HARM]]
    merged = learn(make(), "merge", 2, harming)
    inner = inner_loop(service, folder)
    items = [Item(PASSAGES[0], question) for question in PASSAGES[0].questions]
    whole = cost(
        kind, inner, service, folder, merged[0][0].adapters[0], merged[1][0].adapters[0], items
    )
    assert whole > 0
    gated = learn(make(budget=whole / 2), f"gate={kind}", 2, harming)
    outcome = gated[1][0]
    assert 0.1 < outcome.scale < 1
    below, full, scaled = (
        deltas_of(path)
        for path in (
            *(merged[0][0].adapters[0], merged[1][0].adapters[0]),
            outcome.adapters[0],
        )
    )
    for name, (_, b) in full.items():
        torch.testing.assert_close(scaled[name][1][:, :2], below[name][1])
        torch.testing.assert_close(scaled[name][1][:, 2:], outcome.scale * b[:, 2:])
    found = cost(kind, inner, service, folder, gated[0][0].adapters[0], outcome.adapters[0], items)
    assert found <= whole / 2 + 1e-4
    assert found > 0.4 * whole


def cost(
    kind: str,
    inner: InnerLoop,
    service: Any,
    folder: str,
    before: str,
    after: str,
    items: list[Item],
) -> float:
    """Mean over the questions, from the logits of merged models."""
    models = [merged_model(service, folder, path) for path in (before, after)]
    tokenizer = chat_tokenizer()
    costs = []
    for item in items:
        prompt = inner.answerer.prompt(item)
        if kind == "nats":
            answer = tokenizer.encode(f" {item.question.answer}")
            logprobs = [answer_logprobs(m, prompt, answer) for m in models]
            at = torch.tensor(answer)[:, None]
            sums = [float(lp.gather(1, at).sum()) for lp in logprobs]
            costs.append(sums[0] - sums[1])
            continue
        sampler = service.create_sampling_client(before, folder)
        [future] = inner.answerer.ask([item], sampler)
        tokens = future.result().sequences[0].tokens
        first, second = (answer_logprobs(m, prompt, tokens) for m in models)
        top = first.topk(20, dim=-1)
        shares = top.values.exp() / top.values.exp().sum(-1, keepdim=True)
        costs.append(
            float((shares * (shares.log() - second.gather(1, top.indices))).sum(-1).mean())
        )
    return float(np.mean(costs))


def answer_logprobs(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """[tokens of the answer, vocabulary]."""
    logits = hf_logits(model, [*prompt, *answer]).detach()
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def merged_model(service: Any, folder: str, path: str) -> Any:
    target = Path(path).parent / "merged"
    if not target.exists():
        client = service.create_training_client_from_state(path, folder)
        client.export_merged(target).result()
    return hf_model(str(target))


def test_what_a_teacher_says(service: Any, folder: str) -> None:
    """Against the logits of transformers."""
    tokenizer: Any = chat_tokenizer()
    shown, text = "A village\nThe fields of Rehu bear fennel.\n\n", "Rehu grows fennel."
    tokens, weights = render_text(tokenizer, text)
    datum = datum_from_tokens(tokens, weights)
    base = service.create_sampling_client(base_model=folder)
    [soft] = taught([datum], ask_teacher(tokenizer, base, shown, [datum]))
    assert soft.model_input.to_ints() == tokens[:-1]
    prompt = tokenizer.encode(shown)
    logprobs = answer_logprobs(hf_model(folder), [*prompt, tokens[0]], tokens[1:])
    top = logprobs.topk(TEACHER_TOP_K, dim=-1)
    shares = top.values.exp() / top.values.exp().sum(-1, keepdim=True)
    np.testing.assert_array_equal(soft.loss_fn_inputs["target_tokens"].to_numpy(), top.indices)
    np.testing.assert_allclose(
        soft.loss_fn_inputs["weights"].to_numpy(), shares, atol=1e-5, rtol=1e-3
    )


def test_distill_learns_what_the_teacher_says(make: Make, service: Any, folder: str) -> None:
    """On top of the base model: the same as a training on its own soft targets."""
    steps = learn(make(), "distill", 1)
    inner = inner_loop(service, folder)
    texts = [*EDITS[0].text.splitlines(), f"A village\n{PASSAGES[0].context}"]
    job = inner.adapt_job(texts, seed=seed_of_step(0, 1))
    base = service.create_sampling_client(base_model=folder)
    shown = f"A village\n{PASSAGES[0].context}\n\n"
    soft = taught(job.datums_D, ask_teacher(chat_tokenizer(), base, shown, job.datums_D))
    saved: list[Any] = []
    adapt(
        *(service, folder, [AdaptJob(soft, 1e-2, 3, job.seed)], inner.settings.adapt),
        on_adapted=lambda index, sampler: None,
        on_trained=lambda index, client: saved.append(client.save_weights_for_sampler("soft")),
    )
    alone = deltas_of(saved[0].result().path)
    for name, (a, b) in deltas_of(steps[0][0].adapters[0]).items():
        torch.testing.assert_close(a, alone[name][0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(b, alone[name][1], atol=1e-5, rtol=1e-4)


def test_a_wild_learning_rate_fails_alone(make: Make) -> None:
    """In one sequence, chosen by its edit; the other goes on, and so does the next step."""
    continual = make()
    method = parse_method("merge")
    rows_S = continual.before_all()
    wild = Edit(EDITS[0].text, learning_rate=1e30)
    before_S = [Before([], rows_S[0], [wild]), Before([], rows_S[1], [EDITS[1]])]
    broken, fine = continual.step(method, 1, before_S)
    assert broken.failed is not None
    assert broken.adapters == []
    assert broken.row.correct_K_Q[0] == rows_S[0].correct_K_Q[0]
    assert fine.failed is None
    assert len(fine.adapters) == 1
    again_S = [
        Before(broken.adapters, broken.row, [wild, EDITS[1]]),
        Before(fine.adapters, fine.row, EDITS_S_K[1][:2]),
    ]
    later, _ = continual.step(method, 2, again_S)
    assert later.failed is None
    assert math.isfinite(later.row.text_nats)


def test_what_is_trained_but_cannot_answer_is_not_gone_on_with(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step is all of the training, so that nothing has failed until a question is asked."""
    continual = make()
    rows_S = continual.before_all()
    method = parse_method("merge")
    firsts_S = [Before([], row, [edits[0]]) for row, edits in zip(rows_S, EDITS_S_K, strict=True)]
    done_S = continual.step(method, 1, firsts_S)
    settings = continual._inner.settings
    one_step = replace(settings, num_epochs=1, adapt=replace(settings.adapt, batch_size=8))
    monkeypatch.setattr(continual._inner, "settings", one_step)
    wild = Edit(EDITS[1].text, learning_rate=1e30)
    seconds_S = [
        Before(done.adapters, done.row, [edits[0], new])
        for done, edits, new in zip(done_S, EDITS_S_K, (wild, EDITS[0]), strict=True)
    ]
    broken, fine = continual.step(method, 2, seconds_S)
    assert broken.failed is not None and broken.trained_tokens > 0
    # the adapters of before answer, about what was learned since as well
    assert broken.adapters == done_S[0].adapters
    assert broken.row.correct_K_Q[0] == done_S[0].row.correct_K_Q[0]
    assert broken.row.correct_K_Q[1] is not None and math.isfinite(broken.row.text_nats)
    assert fine.failed is None and fine.adapters != done_S[1].adapters


def test_a_library_asks_the_adapter_that_is_like_the_question(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    continual = make()
    steps = learn(continual, "library", 2)
    folders = steps[1][0].adapters
    folder_of: dict[int, str] = {}
    asked: list[tuple[str, str]] = []
    sampler_of, ask = continual._sampler, continual._inner.answerer.ask

    def sampler(folder: str) -> Any:
        made = sampler_of(folder)
        folder_of[id(made)] = folder
        return made

    def recorded(items: Sequence[Item], client: Any) -> list[Any]:
        asked.extend((folder_of[id(client)], item.question.id) for item in items)
        return ask(items, client)

    monkeypatch.setattr(continual, "_sampler", sampler)
    monkeypatch.setattr(continual._inner.answerer, "ask", recorded)
    continual._rows({0: folders}, 2, is_library=True)
    found = {question: folder for folder, question in asked}
    for k, name in enumerate(("Rehu", "Tolm")):
        assert {found[f"{name}/{i}"] for i in range(2)} == {folders[k]}


def test_methods_and_edits() -> None:
    assert parse_method("replay=7").num_replayed == 7
    assert parse_method("replay").num_replayed == 4
    assert parse_method("gate").gate == "em"
    wrong = ["", "fuse", "replay=0", "replay=", "gate=x", "gate=", "merge=2", "library=1"]
    for label in wrong:
        with pytest.raises(ConfigError, match="methods: "):
            parse_method(label)
    assert Edit.of("Q: Who? A: Ann", "qa", Choices()) == Edit("Q: Who? A: Ann")
    failed = Edit.of("  ", "qa", Choices())
    assert (failed.text, failed.note) == ("", "the self-edit is empty")
    head = '{"form": "statements", "learning_rate": 0.003}'
    chosen = Edit.of(f"{head}\nRehu grows fennel.", "model", Choices())
    assert chosen == Edit("Rehu grows fennel.", 0.003)
