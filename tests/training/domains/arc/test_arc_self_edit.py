import copy
import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from training.domains.arc.grids import to_grid
from training.domains.arc.self_edit import (
    FAMILY_OF_FLAG,
    ORACLE,
    STRATEGIES,
    Bounds,
    SelfEdit,
    SelfEditError,
    check_steps,
    json_schema,
    parse_self_edit,
    self_edit_messages,
    training_steps,
)
from training.domains.arc.tasks import Pair, Task

BOUNDS = Bounds()
ORACLE_JSON = {
    "data_generation": {
        "use_basic_augmentations": True,
        "use_size_augmentations": True,
        "use_chain_augmentations": True,
        "use_repeat_augmentations": True,
    },
    "training": {
        "strategy": "train_using_output_tokens",
        "learning_rate": 0.0001,
        "num_train_epochs": 2,
    },
}


def changed(section: str, key: str, value: Any) -> str:
    data: Any = copy.deepcopy(ORACLE_JSON)
    data[section][key] = value
    return json.dumps(data)


def without(section: str, key: str) -> str:
    data = copy.deepcopy(ORACLE_JSON)
    del data[section][key]
    return json.dumps(data)


def test_oracle_in_the_published_layout():
    assert ORACLE.to_json() == ORACLE_JSON
    assert json.dumps(ORACLE.to_json()) == json.dumps(ORACLE_JSON)
    assert ORACLE.families == ("basic", "size", "chain", "repeat")
    assert parse_self_edit(json.dumps(ORACLE_JSON, indent=2), BOUNDS) == ORACLE


def test_families():
    edit = SelfEdit(False, True, False, True, "train_using_all_tokens", 1e-3, 1)
    assert edit.families == ("size", "repeat")
    assert parse_self_edit(json.dumps(edit.to_json()), BOUNDS) == edit


@pytest.mark.parametrize("rate", ["1e-6", "0.000001", "0.01", "1E-2", "5.5e-5"])
def test_learning_rates_within_bounds(rate):
    text = json.dumps(ORACLE_JSON).replace("0.0001", rate)
    assert parse_self_edit(text, BOUNDS).learning_rate == float(rate)


def test_a_whole_learning_rate_becomes_a_float():
    edit = parse_self_edit(changed("training", "learning_rate", 1), Bounds(max_learning_rate=2))
    assert type(edit.learning_rate) is float


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("Sure! {}", "not JSON"),
        (json.dumps(ORACLE_JSON)[:-1], "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("9" * 5_000, "not JSON"),
        ("\ud800", "not JSON"),
        ("null", "self-edit: expected an object .* got None"),
        ("[1]", r"self-edit: expected an object .* got \[1\]"),
        ("{}", r"self-edit: missing keys \['data_generation', 'training'\], unknown keys \[\]"),
        (json.dumps(ORACLE_JSON | {"x": 1}), r"self-edit: missing keys \[\], unknown keys \['x'\]"),
        (json.dumps(ORACLE_JSON | {"training": []}), "training: expected an object"),
        (json.dumps(ORACLE_JSON)[:-1] + ', "training": {}}', r"repeated keys \['training'\]"),
        (without("training", "strategy"), r"training: missing keys \['strategy'\]"),
        (changed("data_generation", "y", True), r"data_generation: .* unknown keys \['y'\]"),
        (
            changed("data_generation", "use_size_augmentations", 1),
            "use_size_augmentations: got 1, allowed are true and false",
        ),
        (
            changed("data_generation", "use_size_augmentations", "true"),
            "use_size_augmentations: got 'true', allowed are true and false",
        ),
        (
            changed("training", "strategy", "train"),
            "strategy: got 'train', allowed are .*output_tokens.*all_tokens",
        ),
        (changed("training", "strategy", ["x"]), r"strategy: got \['x'\]"),
        (
            changed("training", "learning_rate", 0.5),
            "learning_rate: got 0.5, allowed are numbers 1e-06..0.01",
        ),
        (changed("training", "learning_rate", 0), "learning_rate: got 0, allowed"),
        (changed("training", "learning_rate", -1e-4), "learning_rate: got -0.0001, allowed"),
        (changed("training", "learning_rate", "1e-4"), "learning_rate: got '1e-4', allowed"),
        (changed("training", "learning_rate", True), "learning_rate: got True, allowed"),
        (changed("training", "learning_rate", float("nan")), "learning_rate: got nan"),
        (changed("training", "learning_rate", float("inf")), "learning_rate: got inf"),
        (changed("training", "learning_rate", 10**400), "learning_rate: got 1000.*allowed"),
        (
            changed("training", "num_train_epochs", 21),
            "num_train_epochs: got 21, allowed are integers 1..20",
        ),
        (changed("training", "num_train_epochs", 0), "num_train_epochs: got 0"),
        (changed("training", "num_train_epochs", "2"), "num_train_epochs: got '2'"),
        (changed("training", "num_train_epochs", 2.0), "num_train_epochs: got 2.0"),
        (changed("training", "num_train_epochs", True), "num_train_epochs: got True"),
        (changed("training", "num_train_epochs", None), "num_train_epochs: got None"),
    ],
)
def test_refused_with_the_reason(text, reason):
    with pytest.raises(SelfEditError, match=reason) as caught:
        parse_self_edit(text, BOUNDS)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"min_learning_rate": 0}, "min_learning_rate=0, max"),
        ({"min_learning_rate": 1e-2, "max_learning_rate": 1e-3}, "max_learning_rate=0.001"),
        ({"max_learning_rate": float("inf")}, "max_learning_rate=inf"),
        ({"min_epochs": 0}, "min_epochs=0, max"),
        ({"min_epochs": 3, "max_epochs": 2}, "min_epochs=3, max_epochs=2"),
        ({"max_steps": 0}, "max_steps=0"),
    ],
)
def test_bounds_are_checked(kwargs, named):
    with pytest.raises(ValueError, match=f"{named}.*: expected"):
        Bounds(**kwargs)


def matches(text: str, bounds: Bounds = BOUNDS) -> bool:
    """Whether constrained sampling could have written `text`."""
    tokenizer = LLTokenizer("byte")
    grammar = LLMatcher.grammar_from_json_schema(json_schema(bounds))
    tokens = tokenizer.tokenize_str(text)
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    return matcher.validate_tokens(tokens) == len(tokens) and (
        matcher.consume_tokens(tokens) and matcher.is_accepting()
    )


def test_schema_layout():
    schema = json_schema(BOUNDS)
    assert schema["required"] == ["data_generation", "training"]
    assert schema["properties"]["data_generation"]["required"] == list(FAMILY_OF_FLAG)
    training = schema["properties"]["training"]
    assert training["required"] == ["strategy", "learning_rate", "num_train_epochs"]
    assert training["properties"]["strategy"]["enum"] == list(STRATEGIES)
    for part in (schema, training, schema["properties"]["data_generation"]):
        assert part["additionalProperties"] is False
        assert list(part["properties"]) == part["required"]
    assert json.loads(json.dumps(schema)) == schema


def test_llguidance_compiles_the_schema_without_warnings():
    grammar = LLMatcher.grammar_from_json_schema(json_schema(BOUNDS))
    assert LLMatcher.validate_grammar(grammar) == ""


@pytest.mark.parametrize("indent", [None, 2])
def test_llguidance_accepts_the_oracle(indent):
    assert matches(json.dumps(ORACLE_JSON, indent=indent))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("data_generation", "use_basic_augmentations", 1),
        ("training", "strategy", "none"),
        ("training", "learning_rate", 0.02),
        ("training", "learning_rate", 0),
        ("training", "num_train_epochs", 21),
        ("training", "num_train_epochs", 0),
        ("training", "another", 0),
    ],
)
def test_llguidance_refuses_what_parsing_refuses(section, key, value):
    text = changed(section, key, value)
    assert not matches(text)
    with pytest.raises(SelfEditError):
        parse_self_edit(text, BOUNDS)


def test_llguidance_ends_the_digits_of_a_rate():
    text = json.dumps(ORACLE_JSON)
    assert matches(text.replace("0.0001", "0.0012345"))
    assert not matches(text.replace("0.0001", "0.00010000001"))
    assert matches(text.replace("0.0001", "0.03"), Bounds(0.01, 0.05))
    assert not matches(text.replace("0.0001", "0.0312"), Bounds(0.01, 0.05))
    # exponents are for unconstrained samples: llguidance writes bounded numbers in decimals
    assert not matches(text.replace("0.0001", "1e-4"))


@pytest.mark.parametrize(
    ("num_examples", "epochs", "batch_size", "steps"),
    [(250, 3, 2, 375), (69, 2, 2, 70), (1, 5, 2, 5), (0, 3, 2, 0), (7, 2, 4, 4)],
)
def test_training_steps(num_examples, epochs, batch_size, steps):
    assert training_steps(num_examples, epochs, batch_size) == steps


def test_step_cap():
    check_steps(250, 3, BOUNDS)
    check_steps(751, 1, BOUNDS)  # 751 // 2 = 375
    check_steps(250, 6, BOUNDS, batch_size=4)
    with pytest.raises(
        SelfEditError, match=r"4 epochs of 250 examples are 500 steps at batch size 2.* are 375"
    ):
        check_steps(250, 4, BOUNDS)
    with pytest.raises(SelfEditError, match="376 steps"):
        check_steps(752, 1, BOUNDS)


def test_messages():
    task = Task("t", (Pair(to_grid([[1, 2]]), to_grid([[3]])),), (Pair(to_grid([[9, 9]])),))
    system, user = self_edit_messages(task, "digits")
    assert (system["role"], user["role"]) == ("system", "user")
    assert user["content"].startswith("Input:\n12\nOutput:\n3\n")
    assert "99" not in user["content"]
    assert "0.01" not in user["content"]
    # the skeleton becomes JSON when a choice is made for every flag and every dots are replaced
    written = user["content"][user["content"].index("{") :]
    assert written.count("false or true") == len(FAMILY_OF_FLAG)
    skeleton = json.loads(written.replace("false or true", "false").replace("...", "0"))
    assert {key: list(value) for key, value in skeleton.items()} == {
        key: list(value) for key, value in ORACLE_JSON.items()
    }
    for word in (*FAMILY_OF_FLAG, *STRATEGIES):
        assert word in user["content"]
    bounded = self_edit_messages(task, "numpy", Bounds(max_epochs=7))[1]["content"]
    assert "[[1 2]]" in bounded
    assert "from 1e-06 to 0.01" in bounded
    assert "from 1 to 7" in bounded
