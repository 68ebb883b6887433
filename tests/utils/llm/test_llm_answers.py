"""utils/llm/answers.py: which texts are an answer of the asked-for shape."""

import json

import pytest
from pydantic import BaseModel, ConfigDict

from utils.llm.answers import require_model
from utils.llm.api import LLMError, Reply


class Verdict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rationale: str
    score: int


GOOD = json.dumps({"rationale": "plain", "score": 7})
OTHER = json.dumps({"rationale": "draft", "score": 1})
# strings may hold all that answers are wrapped in
TALKING = json.dumps({"rationale": "</think> then\n```json\n{}\n```\n<think>", "score": 7})


def read(text: str) -> Verdict:
    return require_model(Reply(text, "stop", None), "judge", Verdict)


@pytest.mark.parametrize("json_text", [GOOD, TALKING, json.dumps(json.loads(GOOD), indent=2)])
@pytest.mark.parametrize(
    "wrapping",
    [
        "{}",
        "\n {} \n",
        "```json\n{}\n```",
        "```\n{}\n```\n",
        "``` {} ```",
        "Sure, here it is:\n\n```json\n{}\n```",
        "<think>\nIs {OTHER} right? No.\n</think>\n\n{}",
        "hm, ```\n{OTHER}\n```?\n</think>\n{}",
        "<think></think>```json\n{}\n```",
        " <think>{OTHER}</think>My verdict:\n```JSON\n{}\n```",
        "```json\n{}\n```\nLet me know if you need more!",
        "Here is the JSON: {}",
        "My verdict is {} and nothing else.",
        "Of `x` and `y` this is the verdict:\n```json\n{}\n```",
        "~~~json\n{}\n~~~",
        "````\n{}\n````",
        "```c++\n{}\n```",
        "```JSON5?\n{}\n```",
        "`{}`",
        "```json\n{}",
        "\ufeff{}",
        "\ufeff<think>{OTHER}</think>{}",
        "<thinking>Is {OTHER} right?</thinking>\n{}",
        "[THINK]{OTHER}[/THINK]{}",
        "<think>a <thinking>{OTHER}</thinking></think>{}",
        "Of the set {1, 2}, \\frac{1}{2} is meant: {}",
        "{}\n\nTo repeat it:\n\n{}",
    ],
)
def test_json_in_its_wrapping(wrapping: str, json_text: str) -> None:
    text = wrapping.replace("{}", json_text).replace("{OTHER}", OTHER)
    assert read(text) == Verdict.model_validate_json(json_text)


@pytest.mark.parametrize(
    "text",
    [
        # which of them is meant?
        f"```json\n{OTHER}\n```\nor\n```json\n{GOOD}\n```",
        f"{GOOD}\nor rather {OTHER}",
        f"Not {{rationale: 'draft', score: 1}} but {GOOD}",
        GOOD + GOOD.replace("7", "7.0"),
        f"[{GOOD}, NaN]",
        # a part of what was meant
        f'"verdict": {GOOD}}}',
        f"It says {{ but {GOOD}",
        f"{{{GOOD}}}",
        # only thought of
        f"<reasoning>{OTHER}</reasoning>no",
        f"<think>{OTHER}</think>no",
        f"<thinking>a</think>{GOOD}",
        f"<think>a</think><think>b</think>{GOOD}",
        f"{OTHER}\n{GOOD}",
        f"{GOOD}</think>no",
        f"Well. <think>a</think>{GOOD}",
        f"<think>a{GOOD}",
        f"```json\n{GOOD[:-1]}\n```",
        "```json\n```",
        "```",
        '```json\n{"rationale": "plain", "score": NaN}\n```',
        '<think>a</think>{"rationale": "\\ud83d", "score": 7}',
        f"<think>a</think>{'[' * 100_000}",
        "<think>only thought</think>",
    ],
)
def test_what_is_asked_for_again(text: str) -> None:
    with pytest.raises(LLMError) as error:
        read(text)
    assert error.value.kind == "invalid_json" and error.value.reply is not None


@pytest.mark.parametrize("wrapping", ["{}", "Sure: {}", "<think>a</think>```\n{}\n```"])
def test_a_key_that_stands_twice_is_asked_for_again(wrapping: str) -> None:
    twice = '{"rationale": "plain", "score": 1, "score": 7}'
    with pytest.raises(LLMError, match=r"repeated keys \['score'\]"):
        read(wrapping.replace("{}", twice))


def test_wrapped_answers_are_held_to_the_model() -> None:
    with pytest.raises(LLMError) as error:
        read('```json\n{"rationale": "plain", "score": 7, "also": 1}\n```')
    assert error.value.kind == "invalid_schema"
    assert "also: Extra inputs are not permitted" in error.value.detail


@pytest.mark.parametrize("score", ["true", '"7"', "7.0", "7.5"])
def test_other_types_are_asked_for_again(score: str) -> None:
    with pytest.raises(LLMError, match="score"):
        read(f'{{"rationale": "plain", "score": {score}}}')
