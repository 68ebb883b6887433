"""The text form of balls and urns: words of one token, and a language model's answers.

uv run pytest tests/evaluation/icl/test_icl_text.py
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_chat import chat_tokenizer, save_chat_model
from tiny_models import hf_model, peft_twin, randomise
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from evaluation.icl.evaluator import ModelEvaluator, Sequences, text_answers
from evaluation.icl.text import Items, TextModel, choose_items, context_problems
from training.api import TensorData
from training.icl.base import Batch
from training.icl.config import Evaluation
from training.icl.families import make_family
from training.icl.settings import BallsAndUrns
from training.icl.tasks import make_generator
from utils.config.entrypoint import ConfigError


def word_tokenizer(
    words: list[str], *, lowercase: bool = False, **special: str
) -> PreTrainedTokenizerFast:
    """Bytes, and each of `words` (a space in front is part of it) as one token."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    merges = []
    for word in words:
        pieces = list(word.replace(" ", "Ġ"))
        joined = pieces[0]
        for piece in pieces[1:]:
            if (joined, piece) not in merges:
                merges.append((joined, piece))
                vocabulary.setdefault(joined + piece, len(vocabulary))
            joined += piece
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    if lowercase:
        tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special.values()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


BOTH = {"bos_token": "<s>", "eos_token": "</s>"}


# --- words


def test_words_take_a_space_in_front_where_that_makes_them_single_tokens():
    tokenizer = word_tokenizer([" dog", " cat", " lemon"], **BOTH)
    items = choose_items(tokenizer, 3, ["dog", "lemon", "cat"])
    assert items.words_K == [" dog", " lemon", " cat"]
    assert tokenizer.decode(items.tokens_K) == " dog lemon cat"
    assert len(set(items.tokens_K)) == 3
    assert (items.prefix, items.prefix_kind) == (tokenizer.bos_token_id, "bos")
    # a space that was written is not doubled
    assert choose_items(tokenizer, 2, ["dog", " cat"]).words_K == [" dog", " cat"]


def test_words_are_taken_as_written_where_only_that_works():
    tokenizer = word_tokenizer(["dog", "cat", " dog"], **BOTH)
    items = choose_items(tokenizer, 2, ["dog", "cat"])
    assert items.words_K == ["dog", "cat"]
    assert tokenizer.decode(items.tokens_K) == "dogcat"


def test_each_word_that_does_not_do_is_told_with_its_tokens_and_words_that_do():
    tokenizer = word_tokenizer([" dog", " cat", " river"], **BOTH)
    with pytest.raises(ConfigError) as caught:
        choose_items(tokenizer, 4, ["dog", "zebra", "ox", "cat"])
    told = str(caught.value)
    assert "' zebra' is 6 tokens ['Ġ', 'z', 'e', 'b', 'r', 'a']" in told
    assert "' ox' is 3 tokens ['Ġ', 'o', 'x']" in told
    # not those that are given already; c, d and r are steps on the way to words
    assert told.endswith("Words that do: river, c, d, r")
    assert "' dog'" not in told and "' cat'" not in told


def test_words_twice_or_with_one_token_between_them_are_refused():
    with pytest.raises(ConfigError, match="'dog' more than once"):
        choose_items(word_tokenizer([" dog", " cat"], **BOTH), 3, ["dog", "cat", "dog"])
    tokenizer = word_tokenizer([" dog", " cat"], lowercase=True, **BOTH)
    with pytest.raises(ConfigError, match="' Dog' is the same token as ' dog'"):
        choose_items(tokenizer, 3, ["dog", "cat", "Dog"])


def test_a_special_token_is_no_word():
    with pytest.raises(ConfigError, match="'</s>' is 1 token"):
        choose_items(word_tokenizer(["dog"], **BOTH), 2, ["dog", "</s>"])


def test_our_own_words_are_single_and_distinct_for_the_tokenizer():
    tokenizer = word_tokenizer([" river", " stone", " bread", "apple"], **BOTH)
    assert choose_items(tokenizer, 3, []).words_K == [" river", " stone", " bread"]
    # bytes alone: letters, without a space
    items = choose_items(chat_tokenizer(), 30, [])
    assert items.words_K[:3] == ["A", "B", "C"] and len(set(items.tokens_K)) == 30
    with pytest.raises(ConfigError, match=r"only 62 are single tokens.*num_dims=63.*words="):
        choose_items(chat_tokenizer(), 63, [])


def test_a_text_begins_with_bos_or_else_with_eos():
    assert choose_items(chat_tokenizer(), 2, []).prefix_kind == "eos"
    assert choose_items(chat_tokenizer(), 2, []).prefix == chat_tokenizer().eos_token_id
    with pytest.raises(ConfigError, match="neither a beginning-of-text nor an end-of-text"):
        choose_items(word_tokenizer(["dog"]), 2, ["d", "o"])


def test_the_text_has_to_fit_the_model():
    assert context_problems(128, 128, "m") == [] and context_problems(10**6, None, "m") == []
    [problem] = context_problems(129, 128, "m")
    assert "setting.context_length=129" in problem and "m reads 128 tokens" in problem


# --- answers


class Stub:
    """A client that knows the exact rule: predictor G on the items, which get `mass` in all."""

    def __init__(self, items: Items, mass: float) -> None:
        self.items, self.mass, self.texts = items, mass, []

    def forward(self, data: list[Any], loss_fn: str) -> Any:
        assert loss_fn == "cross_entropy"
        outputs = []
        for datum in data:
            text = datum.model_input.to_ints()
            self.texts.append(text)
            rows = []
            counts = np.ones(len(self.items.tokens_K))
            for position, token in enumerate(text):
                if position:
                    counts[self.items.tokens_K.index(token)] += 1
                rows.append(np.log(self.mass * counts / counts.sum()))
            targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
            assert (targets == self.items.tokens_K).all() and len(targets) == len(text)
            outputs.append({"logprobs": TensorData.from_numpy(np.array(rows))})
        result = SimpleNamespace(loss_fn_outputs=outputs)
        return SimpleNamespace(result=lambda: result)


def test_a_model_that_is_the_generalizing_predictor_has_its_exact_loss():
    """Reference: the closed form of the expected KL, K=3 (.07242 on average over n=0..31)."""
    setting = BallsAndUrns(num_dims=3, context_length=32)
    sequences = Sequences(
        make_family(setting), None, Evaluation(num_sequences=1500, modes=["standard"])
    )
    items = Items([" a", " b", " c"], [70, 50, 90], 7, "bos")
    stub: Any = Stub(items, mass=0.3)
    record = ModelEvaluator(text_answers(TextModel(stub, items)), sequences).evaluate()["standard"]
    assert all(text[0] == 7 and len(text) == 32 for text in stub.texts)
    assert record["divergence_generalizing"] == pytest.approx(0, abs=1e-6)
    assert record["loss"] == pytest.approx(record["generalizing_loss"], abs=1e-6)
    assert record["loss"] == pytest.approx(0.07242, abs=4 * record["loss_error"])
    assert record["position_loss"][0].item() == pytest.approx(0.26528, rel=0.08)
    assert record["item_mass"] == pytest.approx(0.3, abs=1e-6)
    assert record["all_item_mass"].shape == (1500, 32)
    assert record["position_item_mass"].shape == (32,)


def some_batch(num_dims: int, length: int, count: int) -> Batch:
    family = make_family(BallsAndUrns(num_dims=num_dims, context_length=length))
    return family.sample(None, count, make_generator("evaluation", "test"))


@pytest.mark.parametrize("tuned", [False, True])
def test_answers_equal_those_of_transformers(
    tuned: bool, tmp_path: Path, connect_local, one_torch_thread
):
    folder = save_chat_model(tmp_path / "model", favourites="AC")
    items = choose_items(chat_tokenizer(), 4, [])
    client = connect_local().create_lora_training_client(folder, rank=1, seed=0)
    reference = hf_model(folder)
    if tuned:
        randomise(client, seed=1)
        reference = peft_twin(client, folder)
    batch = some_batch(4, 9, 3)
    answer = TextModel(client, items).answer(batch)
    texts = torch.full((3, 9), items.prefix)
    for row in range(3):
        for position in range(1, 9):
            texts[row, position] = items.tokens_K[int(batch.inputs[row, position])]
    with torch.no_grad():
        logits = reference(input_ids=texts).logits.double()
    wanted = logits[..., items.tokens_K].log_softmax(-1)
    mass = logits.softmax(-1)[..., items.tokens_K].sum(-1)
    assert answer.predictions.shape == (3, 9, 4)
    assert (answer.predictions - wanted).abs().max() <= 1e-4
    assert (answer.item_mass - mass).abs().max() <= 1e-4
    assert 0.01 < float(mass.mean()) < 0.99
    # the model looks at the draws
    assert (wanted[:, 1:] - wanted[:, :1]).abs().max() > 1e-2
