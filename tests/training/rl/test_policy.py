"""The policy as a sampler: problems continued as raw text, and held to their own grammar."""

from pathlib import Path
from typing import Any

import pytest
from tiny_chat import chat_tokenizer, save_chat_model

from training.api import ModelInput, SamplingParams
from training.chat import parse_continuation, render_prompt, render_raw_prompt
from training.domains.base import Problem, RawPrompt, Stateless
from training.rl.policy import Policy
from training.rl.problems import Chosen, PromptLimit, problems_input


class Free(Stateless):
    name = "free"
    max_tokens = 12
    json_schema: dict[str, Any] | None = None

    def invalid(self, answer: str) -> str | None:
        return None if answer in ("aa", "bb") else "neither aa nor bb"


class Held(Free):
    json_schema: dict[str, Any] | None = {"enum": ["s"]}  # noqa: RUF012


def problem(name: str, **more: Any) -> Problem:
    return Problem(name, [{"role": "user", "content": f"{name}?"}], 0, **more)


@pytest.fixture(scope="module")
def trainer(service: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("policy")
    model = save_chat_model(folder, favourites="abc.")
    return service.create_lora_training_client(model, rank=2, seed=0)


def answers(trainer: Any, domain: Any, problems: list[Problem], **settings: Any) -> Any:
    made: dict[str, Any] = {"enforce_schema": True, "max_resamples": 0, "seed": 0}
    policy = Policy(trainer, domain, **(made | settings))
    groups = policy.answers(problems, size=4, temperature=1.0, key=("train", 0))
    return [[t.text for t in group] for group in groups]


def test_each_problem_is_held_to_its_own_grammar_or_else_to_the_schema(trainer: Any) -> None:
    problems = [
        problem("one", grammar='start: "aa" | "bb"'),
        problem("two", grammar='start: "cc"'),
        problem("three"),
    ]
    first, second, third = answers(trainer, Held(), problems)
    assert set(first) <= {"aa", "bb"} and set(second) == {"cc"} and set(third) == {'"s"'}
    free = answers(trainer, Free(), problems)
    assert free[:2] == [first, second] and not {"aa", "bb", "cc", '"s"'} & set(free[2])
    assert not {"aa", "bb"} & set(answers(trainer, Free(), problems, enforce_schema=False)[0])


def test_without_enforcing_invalid_answers_to_a_grammar_are_sampled_again(trainer: Any) -> None:
    plain, held = problem("one"), problem("one", grammar='start: "aa" | "bb"')
    once = answers(trainer, Free(), [held], enforce_schema=False)
    assert answers(trainer, Free(), [held], enforce_schema=False, max_resamples=2) != once
    # nothing is asked of an answer without a form
    assert answers(trainer, Free(), [plain], enforce_schema=False, max_resamples=2) == once


def test_a_raw_prompt_is_continued_up_to_its_stop(trainer: Any) -> None:
    raw = problem("raw", raw=RawPrompt("Once: a", stop=("b", ".")))
    domain: Any = Free()
    policy = Policy(trainer, domain, enforce_schema=True, max_resamples=0, seed=0)
    assert policy.prompt(raw) == chat_tokenizer().encode("Once: a")
    groups = policy.answers([raw], size=8, temperature=1.0, key=("train", 0))
    tokenizer: Any = chat_tokenizer()
    written = [tokenizer.decode(t.tokens_T) for t in groups[0]]
    stopped = [text for text in written if text[-1] in "b."]
    assert len(stopped) > 4 and len(set(written)) > 2
    for text, trajectory in zip(written, groups[0], strict=True):
        assert trajectory.text == text.removesuffix("b").removesuffix(".")
        assert "b" not in trajectory.text and "." not in trajectory.text


def test_an_endless_raw_prompt_ends_with_the_model_s_end_token(trainer: Any) -> None:
    raw = problem("raw", raw=RawPrompt("a"), grammar='start: "x"?')
    sampled = set(answers(trainer, Free(), [raw] * 8)[0])
    assert sampled <= {"", "x"} and "<" not in "".join(sampled)
    sampler = trainer.save_weights_and_get_sampling_client().result()
    params = SamplingParams(max_tokens=12, seed=0, grammar='start: "x"?')
    prompt = ModelInput.from_ints(render_raw_prompt(chat_tokenizer(), "a"))
    ends = {s.stop_reason for s in sampler.sample(prompt, 8, params).result().sequences}
    assert ends == {"stop"}


def test_continuations_are_cut_at_the_first_stop_and_lose_their_end_tokens() -> None:
    tokenizer = chat_tokenizer()
    tokens = [*tokenizer.encode("one\nTwo, three"), tokenizer.eos_token_id]
    assert parse_continuation(tokenizer, tokens) == "one\nTwo, three"
    assert parse_continuation(tokenizer, tokens, [", ", "\nTwo"]) == "one"
    assert parse_continuation(tokenizer, tokens[:3]) == "one"
    assert parse_continuation(tokenizer, tokens[-1:]) == ""


def test_the_length_of_a_raw_prompt_is_that_of_its_text() -> None:
    limit = PromptLimit(chat_tokenizer(), None)
    raw = problem("raw", raw=RawPrompt("12345 <|im_end|>"))
    # the name of a control token stays text
    assert limit.length(raw) == 16
    plain = problem("raw")
    assert limit.length(plain) == len(render_prompt(chat_tokenizer(), plain.messages))


def test_a_run_knows_its_raw_prompts_and_grammars() -> None:
    plain = problem("a")
    variants = [
        plain,
        problem("a", raw=RawPrompt("x")),
        problem("a", raw=RawPrompt("y")),
        problem("a", raw=RawPrompt("x", stop=("z",))),
        problem("a", grammar='start: "x"'),
    ]
    domain: Any = Free()
    hashes = {problems_input(domain, "mine", Chosen([p], [])) for p in variants}
    assert len(hashes) == len(variants)
