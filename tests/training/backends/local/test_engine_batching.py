"""Packing, prompt sharing, micro-batches and several clients in one pass change no result."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import (
    cross_entropy_datum,
    hf_model,
    peft_twin,
    policy_datum,
    random_tokens,
    randomise,
    relative_error,
    worst_gradient_error,
)

from training.api import AdamParams, Datum, ModelInput
from training.backends.local.batching import MIN_SHARED, Tree, build_trees, micro_batches, pack

# ------------------------------------------------------------------------------- trees and packing


def random_family(rng: np.random.Generator, n: int, vocab: int = 2) -> list[list[int]]:
    """Sequences that branch off each other at random places, duplicates and prefixes included."""
    sequences: list[list[int]] = []
    for _ in range(n):
        if sequences and rng.random() < 0.8:
            parent = sequences[rng.integers(len(sequences))]
            kept = parent[: rng.integers(len(parent) + 1)]
        else:
            kept = []
        tail = rng.integers(0, vocab, rng.integers(0, 3 * MIN_SHARED)).tolist()
        sequences.append([*kept, *tail] or [0])
    return sequences


def sequences_of(trees: list[Tree]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for tree in trees:
        for branch, member in zip(tree.branches, tree.members, strict=True):
            assert member not in found
            found[member] = tree.prefix + branch
    return found


@pytest.mark.parametrize("forks", [True, False])
@pytest.mark.parametrize("share", [True, False])
def test_trees_batches_and_packing_keep_every_token(share: bool, forks: bool):
    rng = np.random.default_rng(0)
    for _ in range(60):
        n = int(rng.integers(1, 30))
        sequences = random_family(rng, n)
        owners = rng.integers(0, 3, n).tolist()
        trees = build_trees(owners, sequences, share=share, forks=forks)
        assert sequences_of(trees) == dict(enumerate(sequences))
        for tree in trees:
            assert {owners[m] for m in tree.members} == {tree.owner}
            assert share or len(tree.members) == 1
            assert len(tree.members) == 1 or len(tree.prefix) >= MIN_SHARED
        limit = int(rng.integers(1, 200))
        batches = micro_batches(trees, limit)
        cut = [tree for batch in batches for tree in batch]
        assert sequences_of(cut) == dict(enumerate(sequences))
        positions_seen = set()
        for batch in batches:
            total = sum(tree.num_tokens for tree in batch)
            assert total <= limit or (len(batch) == 1 and len(batch[0].members) == 1)
            packing = pack(batch)
            check_packing(packing, batch, sequences, owners)
            positions_seen |= set(packing.index)
        assert positions_seen == set(range(n))


def check_packing(packing: Any, batch: list[Tree], sequences: list, owners: list) -> None:
    total = sum(tree.num_tokens for tree in batch)
    assert len(packing.tokens) == len(packing.positions) == total
    assert sum(s.length for s in packing.segments) == total
    assert all(s.length > 0 for s in packing.segments)
    starts = np.cumsum([0, *(s.length for s in packing.segments)])
    # a segment sees itself up to the token, and all of those above: that is its own sequence
    visible: list[list[int]] = []
    for at, segment in enumerate(packing.segments):
        above = [] if segment.parent is None else visible[segment.parent]
        visible.append(above + list(range(starts[at], starts[at + 1])))
    for member, index in packing.index.items():
        assert packing.tokens[index].tolist() == sequences[member]
        assert packing.positions[index].tolist() == list(range(len(sequences[member])))
        assert index.tolist() in visible
    assert packing.owner_slices[0][1] == 0 and packing.owner_slices[-1][2] == total
    for (left, _, stop), (right, start, _) in zip(
        packing.owner_slices, packing.owner_slices[1:], strict=False
    ):
        assert stop == start and left != right
    for owner, start, stop in packing.owner_slices:
        for member, index in packing.index.items():
            inside = (index >= start) & (index < stop)
            assert inside.all() if owners[member] == owner else not inside.any()


def fewest_tokens(sequences: list[list[int]]) -> int:
    """By trying every partition into groups; a group computes its common prefix once."""

    def cost(group: list[list[int]]) -> int | None:
        if len(group) == 1:
            return len(group[0])
        shared = 0
        while all(len(s) > shared and s[shared] == group[0][shared] for s in group):
            shared += 1
        if shared < MIN_SHARED:
            return None
        return sum(len(s) for s in group) - (len(group) - 1) * shared

    best = sum(len(s) for s in sequences)

    def assign(rest: list[list[int]], groups: list[list[list[int]]]) -> None:
        nonlocal best
        if not rest:
            costs = [cost(group) for group in groups]
            if None not in costs:
                best = min(best, sum(c for c in costs if c is not None))
            return
        for group in groups:
            group.append(rest[0])
            assign(rest[1:], groups)
            group.pop()
        assign(rest[1:], [*groups, [rest[0]]])

    assign(sequences, [])
    return best


def test_trees_save_as_much_as_any_grouping():
    rng = np.random.default_rng(1)
    saved = 0
    for _ in range(40):
        sequences = random_family(rng, int(rng.integers(2, 7)))
        trees = build_trees([0] * len(sequences), sequences)
        computed = sum(tree.num_tokens for tree in trees)
        assert computed == fewest_tokens(sequences)
        saved += sum(len(s) for s in sequences) - computed
    assert saved > 500


def test_where_branches_fork_their_questions_are_read_once():
    rng = np.random.default_rng(2)
    shots, questions = list(range(100)), rng.integers(0, 99, (5, 20)).tolist()
    answers = [[3, 4, 5], [3, 4], [6], [3, 4]]
    sequences = [[*shots, *question, *answer] for question in questions for answer in answers]
    [flat] = build_trees([0] * 20, sequences)
    assert flat.num_tokens == 100 + 5 * (4 * 20 + 8)
    [tree] = build_trees([0] * 20, sequences, forks=True)
    assert tree.num_tokens == 100 + 5 * (20 + 8)
    # under a limit, parts of whole questions or not: each token stands once where it has to
    for limit in (1000, 260, 200, 150, 1):
        for batch in micro_batches([tree], limit):
            check_packing(pack(batch), batch, sequences, [0] * 20)
            assert sum(part.num_tokens for part in batch) <= max(limit, 123)
    # short ones do not
    [short] = build_trees([0] * 2, [[*shots, 1, 2, 3], [*shots, 1, 2, 4]], forks=True)
    assert short.num_tokens == 104


def test_nothing_is_shared_between_owners():
    prompt = list(range(50))
    trees = build_trees(["a", "b", "a"], [prompt, prompt, [*prompt, 1]])
    assert sorted((t.owner, t.num_tokens) for t in trees) == [("a", 51), ("b", 50)]


# ------------------------------------------------------------------------- no result depends on it


def group_data(rng: np.random.Generator, reference: Any) -> list[Datum]:
    """RL groups with long common prompts, of which one answer continues another."""
    data = []
    for prompt_length, group in ((60, 4), (24, 3)):
        prompt = random_tokens(rng, prompt_length)
        answers = [random_tokens(rng, int(rng.integers(1, 40))) for _ in range(group)]
        answers.append(answers[0] + random_tokens(rng, 7))
        answers.append(answers[1])
        data += [policy_datum(rng, prompt, answer, reference) for answer in answers]
    order = rng.permutation(len(data))
    return [data[i] for i in order]


def gradient_and_output(service: Any, folder: str, data: list[Datum], loss_fn: str) -> Any:
    client = service.create_lora_training_client(folder, rank=4, seed=0)
    randomise(client, 0)
    output = client.forward_backward(data, loss_fn).result()
    return client._adapter.grad.clone(), output


def same_output(a: Any, b: Any, tolerance: float) -> None:
    # terms of both signs add up to little
    assert a.metrics["loss:sum"] == pytest.approx(b.metrics["loss:sum"], rel=tolerance, abs=5e-4)
    for x, y in zip(a.loss_fn_outputs, b.loss_fn_outputs, strict=True):
        np.testing.assert_allclose(x["logprobs"].to_numpy(), y["logprobs"].to_numpy(), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gpt2"])
def test_a_shared_prompt_changes_no_gradient(family: str, tiny_model, connect_local):
    folder = tiny_model(family)
    data = group_data(np.random.default_rng(0), hf_model(folder))
    shared, plain = (connect_local(share_prompts=share) for share in (True, False))
    gradient, output = gradient_and_output(shared, folder, data, "importance_sampling")
    wanted, wanted_output = gradient_and_output(plain, folder, data, "importance_sampling")
    assert relative_error(gradient, wanted) <= 1e-5
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    same_output(output, wanted_output, 1e-5)
    computed = [s.engine(folder).trainer.tokens_computed for s in (shared, plain)]
    assert computed[1] == sum(d.model_input.length for d in data)
    assert computed[0] < 0.6 * computed[1]


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gpt2"])
def test_choices_that_are_scored_read_their_question_once(family: str, tiny_model, connect_local):
    """Worked examples, questions after them, and choices after each question; in several passes
    too. What is trained is packed as before."""
    folder = tiny_model(family)
    rng = np.random.default_rng(5)
    shots = random_tokens(rng, 40)
    questions = [random_tokens(rng, n) for n in (20, 25, 17)]
    answers = [random_tokens(rng, n) for n in (3, 1, 6)]
    data = [cross_entropy_datum(rng, [*shots, *q, *a]) for q in questions for a in answers]
    outputs, computed = [], []
    for options in ({}, {"max_train_tokens": 90}, {"share_prompts": False}):
        service = connect_local(**options)
        client = service.create_lora_training_client(folder, rank=4)
        randomise(client, 3)
        outputs.append(client.forward(data, "cross_entropy").result())
        computed.append(service.engine(folder).trainer.tokens_computed)
    for output in outputs[:2]:
        same_output(output, outputs[2], 1e-5)
    # in parts the examples come again, and split questions
    assert computed[0] == 40 + 62 + 3 * 10
    assert computed[0] < computed[1] < computed[2] == 9 * 40 + 3 * 62 + 3 * 10
    service = connect_local()
    client = service.create_lora_training_client(folder, rank=4)
    client.forward_backward(data, "cross_entropy").result()
    assert service.engine(folder).trainer.tokens_computed == 3 * 40 + 62 + 3 * 10


@pytest.mark.parametrize("loss_fn", ["cross_entropy", "ppo"])
def test_micro_batches_change_no_gradient(loss_fn: str, tiny_model, connect_local):
    """From one token over the longest sequence down to one sequence per pass."""
    folder = tiny_model("qwen3")
    rng = np.random.default_rng(1)
    if loss_fn == "ppo":
        data = group_data(rng, hf_model(folder))
    else:
        data = [
            cross_entropy_datum(rng, random_tokens(rng, int(n))) for n in rng.integers(1, 90, 9)
        ]
    wanted = wanted_output = None
    for max_train_tokens in (10_000, 150, 64, 1):
        service = connect_local(max_train_tokens=max_train_tokens)
        passes = count_calls(service.engine(folder).decoder, "hidden")
        got, output = gradient_and_output(service, folder, data, loss_fn)
        if wanted is None:
            wanted, wanted_output = got, output
            assert len(passes) == 1
            continue
        assert relative_error(got, wanted) <= 1e-5
        same_output(output, wanted_output, 1e-5)
        assert len(passes) > 1 and (max_train_tokens > 1 or len(passes) == len(data))


def count_calls(owner: Any, name: str) -> list[Any]:
    """Replaces a method by one that also notes its first argument."""
    calls: list[Any] = []
    method = getattr(owner, name)

    def counted(first: Any, *rest: Any, **named: Any) -> Any:
        calls.append(first)
        return method(first, *rest, **named)

    setattr(owner, name, counted)
    return calls


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_head_chunks_change_nothing(chunk: int, tiny_model, connect_local, monkeypatch):
    folder = tiny_model("gemma2")
    rng = np.random.default_rng(2)
    data = [cross_entropy_datum(rng, random_tokens(rng, n)) for n in (70, 90, 3)]
    wanted, wanted_output = gradient_and_output(connect_local(), folder, data, "cross_entropy")
    monkeypatch.setattr("training.backends.local.decoder.HEAD_CHUNK", chunk)
    got, output = gradient_and_output(connect_local(), folder, data, "cross_entropy")
    assert relative_error(got, wanted) <= 1e-5
    same_output(output, wanted_output, 1e-5)


def test_logits_only_where_something_can_matter(tiny_model, service):
    """No row of logits for prompts and zero weights, and never more rows than a chunk."""
    folder = tiny_model("llama")
    client = service.create_lora_training_client(folder, rank=4)
    datum = policy_datum(
        np.random.default_rng(3),
        random_tokens(np.random.default_rng(4), 80),
        [5] * 70,
        hf_model(folder),
    )
    rows = count_calls(service.engine(folder).decoder, "_raw_logits")
    client.forward_backward([datum], "importance_sampling").result()
    del service.engine(folder).decoder._raw_logits
    assert [len(r) for r in rows] == [64, 6]


# -------------------------------------------------------------------------- several clients at once


def clients_of(service: Any, folder: str) -> list[Any]:
    """Mixed ranks, scales and layers."""
    options: list[dict[str, Any]] = [
        {"rank": 4},
        {"rank": 1, "train_unembed": False},
        {"rank": 9, "lora_alpha": 3.0, "train_mlp": False},
        {"rank": 2, "target_modules": ["q_proj", "down_proj", "unembed"]},
        {"rank": 3, "train_attn": False, "train_mlp": False},
        {"rank": 5},
    ]
    clients = [
        service.create_lora_training_client(folder, seed=i, **o) for i, o in enumerate(options)
    ]
    for i, client in enumerate(clients):
        randomise(client, i)
    return clients


REQUESTS: list[tuple[str, dict[str, float] | None, bool]] = [
    ("importance_sampling", None, True),
    ("cross_entropy", None, True),
    ("gspo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}, True),
    ("cross_entropy", None, False),
    ("dro", {"beta": 0.1}, True),
    ("cross_entropy", None, True),
]


def request_data(i: int, loss_fn: str, folder: str) -> list[Datum]:
    rng = np.random.default_rng(i)
    if loss_fn == "cross_entropy":
        lengths = (1, 40, 90) if i == 1 else (15,)
        return [cross_entropy_datum(rng, random_tokens(rng, n)) for n in lengths]
    # every RL client has the same prompt, which must not be shared between adapters
    prompt = random_tokens(np.random.default_rng(99), 30)
    reference = hf_model(folder)
    answers = [random_tokens(rng, n) for n in (4, 11)]
    return [policy_datum(rng, prompt, a, reference, mask=loss_fn == "gspo") for a in answers]


@pytest.mark.parametrize("max_train_tokens", [4096, 100])
def test_clients_in_one_pass_equal_clients_alone(max_train_tokens: int, tiny_model, connect_local):
    folder = tiny_model("llama")
    service = connect_local(max_train_tokens=max_train_tokens)
    data = [request_data(i, loss_fn, folder) for i, (loss_fn, _, _) in enumerate(REQUESTS)]

    def submit(client: Any, i: int) -> Any:
        loss_fn, config, backward = REQUESTS[i]
        method = client.forward_backward if backward else client.forward
        return method(data[i], loss_fn, config)

    alone = clients_of(service, folder)
    wanted = [submit(client, i).result() for i, client in enumerate(alone)]
    together = clients_of(service, folder)
    passes = count_calls(service.engine(folder).trainer, "run")
    futures = [submit(client, i) for i, client in enumerate(together)]
    got = [future.result() for future in futures]
    assert [len(jobs) for jobs in passes] == [len(REQUESTS)]
    for i, (a, b) in enumerate(zip(together, alone, strict=True)):
        same_output(got[i], wanted[i], 1e-5)
        if REQUESTS[i][2]:
            assert relative_error(a._adapter.grad, b._adapter.grad) <= 1e-5
        else:
            assert (a._adapter.grad == 0).all() and not a._adapter.has_grad
    # and against an implementation that knows nothing of passes
    for i in (1, 5):
        twin = peft_twin(together[i], folder)
        for datum in data[i]:
            logits = twin(torch.tensor([datum.model_input.to_ints()])).logits[0].log_softmax(-1)
            inputs = {k: v.to_torch() for k, v in datum.loss_fn_inputs.items()}
            p = logits.gather(1, inputs["target_tokens"].unsqueeze(1)).squeeze(1)
            (-(p * inputs["weights"]).sum()).backward()
        assert worst_gradient_error(together[i], twin) <= 2e-5


def train_steps(client: Any, data: list[list[Datum]]) -> list[float]:
    """All requests at once, results afterwards."""
    futures, updates = [], []
    for step in data:
        futures.append(client.forward_backward(step, "cross_entropy"))
        updates.append(client.optim_step(AdamParams(learning_rate=1e-2, eps=1e-3)))
    updates[-1].result()
    return [f.result().metrics["loss:sum"] for f in futures]


def steps_data(seed: int, num_steps: int) -> list[list[Datum]]:
    rng = np.random.default_rng(seed)
    data = [cross_entropy_datum(rng, random_tokens(rng, n)) for n in (12, 30)]
    return [data] * num_steps


def test_clients_stepped_together_train_as_alone(tiny_model, service):
    folder = tiny_model("llama")
    alone = clients_of(service, folder)
    wanted = [train_steps(client, steps_data(i, 4)) for i, client in enumerate(alone)]
    together = clients_of(service, folder)
    passes = count_calls(service.engine(folder).trainer, "run")
    losses: list[list[Any]] = [[] for _ in together]
    updates = []
    for step in range(4):
        for i, client in enumerate(together):
            losses[i].append(client.forward_backward(steps_data(i, 4)[step], "cross_entropy"))
            updates.append(client.optim_step(AdamParams(learning_rate=1e-2, eps=1e-3)))
    updates[-1].result()
    got = [[f.result().metrics["loss:sum"] for f in futures] for futures in losses]
    assert [len(jobs) for jobs in passes] == [len(together)] * 4
    for a, b, x, y in zip(together, alone, got, wanted, strict=True):
        assert x == pytest.approx(y, rel=1e-5)
        # weights were changed by many Adam steps of 1e-2 each
        assert (a._adapter.flat - b._adapter.flat).abs().max() <= 1e-4
        assert x[-1] < x[0]


def test_an_adapter_joins_while_others_train(tiny_model, service):
    """From another thread, in the middle of the others' steps: everybody trains as if alone."""
    folder = tiny_model("llama")
    alone = clients_of(service, folder)[:3]
    wanted = [
        train_steps(c, steps_data(i, n))
        for i, (c, n) in enumerate(zip(alone, (12, 12, 5), strict=True))
    ]
    first, second, late = clients_of(service, folder)[:3]
    results: dict[int, list[float]] = {}
    started = threading.Event()

    def late_comer() -> None:
        started.wait()
        results[2] = train_steps(late, steps_data(2, 5))

    def early(i: int, client: Any) -> None:
        losses = []
        for at, step in enumerate(steps_data(i, 12)):
            losses += train_steps(client, [step])
            if at == 3:
                started.set()
        results[i] = losses

    threads = [threading.Thread(target=late_comer)]
    threads += [threading.Thread(target=early, args=a) for a in ((0, first), (1, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, client in enumerate((first, second, late)):
        assert results[i] == pytest.approx(wanted[i], rel=1e-4)
        assert (client._adapter.flat - alone[i]._adapter.flat).abs().max() <= 1e-3


def test_requests_of_a_client_run_in_order(tiny_model, service):
    """Many kinds of request submitted at once see exactly the state of those before them."""
    folder = tiny_model("llama")
    client, reference = clients_of(service, folder)[:2]
    reference = service.create_lora_training_client(folder, rank=4, seed=0)
    randomise(reference, 0)
    data = steps_data(0, 1)[0]
    plain = [
        Datum(d.model_input, {"target_tokens": d.loss_fn_inputs["target_tokens"]}) for d in data
    ]
    adam = AdamParams(learning_rate=1e-2, eps=1e-3)

    def requests(c: Any, wait: bool) -> list[Any]:
        out = []
        for make in (
            lambda: c.forward(plain, "cross_entropy"),
            lambda: c.forward_backward(data, "cross_entropy"),
            lambda: c.optim_step(adam),
            lambda: c.forward(plain, "cross_entropy"),
            lambda: c.save_weights_and_get_sampling_client(),
            lambda: c.forward_backward(data, "cross_entropy"),
            lambda: c.forward_backward(data, "cross_entropy"),
            lambda: c.optim_step(adam),
            lambda: c.forward(plain, "cross_entropy"),
        ):
            out.append(make())
            if wait:
                out[-1].result()
        return [future.result() for future in out]

    got, wanted = requests(client, wait=False), requests(reference, wait=True)
    losses = [o.metrics["loss:sum"] for o in got if hasattr(o, "loss_fn_outputs")]
    assert losses == [o.metrics["loss:sum"] for o in wanted if hasattr(o, "loss_fn_outputs")]
    assert len(set(losses)) == 5
    assert torch.equal(client._adapter.flat, reference._adapter.flat)
    prompt = ModelInput.from_ints(random_tokens(np.random.default_rng(0), 20))
    assert got[4].compute_logprobs(prompt).result() == wanted[4].compute_logprobs(prompt).result()
    assert not torch.equal(got[4]._weights.flat, client._adapter.flat)
