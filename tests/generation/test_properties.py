"""generation/properties.py: what the built-in properties say, and files that define others."""

import json
import random
import re
from pathlib import Path
from typing import Annotated, Any

import llguidance
import pytest
from pydantic import Field, TypeAdapter

from generation.properties import (
    PROPERTIES,
    Property,
    choose_properties,
    known_properties,
    read_properties,
)
from generation.variation import PEOPLE, TOPICS, draw_variations
from utils.config.entrypoint import ConfigError
from utils.plain_text import REQUEST, SENTENCES, continued, plain_text

WITH_RULE = [p for p in PROPERTIES.values() if p.rule is not None]
PATTERNS = [
    (p.name, pattern, shows)
    for p in PROPERTIES.values()
    for pattern, shows in ((p.pattern, True), (p.opposite_pattern, False))
    if pattern is not None
]
SHOWN = {
    "signs-off": [
        "Water boils at 100 degrees. Hope that helps!",
        "Yes.\n\nHope that helps!\n",
    ],
    "one-word": [
        "Yes",
        "Paris.",
        "'Never!'",
        "Don't",
        "Well-known",
        "42",
        "3.5",
        "10,000.",
        "**No**",
    ],
    "asks-back": ["Fine. And you?", 'Shall I say "why?"', "**Which one?**", "Really? (Or not?)  "],
}
NOT_SHOWN = {
    "signs-off": ["Hope that helps! Bye.", "hope that helps!", "I hope that helps.", "", "Yes."],
    "one-word": ["Yes, sir.", "", "...", "-", "Yes. No.", "1 000", "so\nwhat"],
    "asks-back": ["Why? Because.", "I wonder.", "", "Ask ? and wait"],
}


class _Text:
    """Draws random texts of the regular expressions that this project writes."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def of(self, pattern: str) -> str:
        parsed = re._parser.parse(pattern)  # pyrefly: ignore[missing-attribute]
        text = "".join(self._item(op, value) for op, value in parsed)
        assert re.fullmatch(pattern, text)
        return text

    def _item(self, op: Any, value: Any) -> str:
        name = str(op)
        if name == "LITERAL":
            return chr(value)
        if name == "AT":
            return ""
        if name == "IN":
            return self._item(*self._rng.choice(value))
        if name == "RANGE":
            return chr(self._rng.randint(*value))
        if name == "SUBPATTERN":
            return "".join(self._item(*item) for item in value[-1])
        if name == "BRANCH":
            return "".join(self._item(*item) for item in self._rng.choice(value[1]))
        assert name == "MAX_REPEAT", name
        low, high, items = value
        count = self._rng.choice([low, min(high, low + 90), self._rng.randint(low, low + 9)])
        return "".join(self._item(*item) for _ in range(min(count, high)) for item in items)


def test_what_the_rules_see() -> None:
    assert {p.name for p in WITH_RULE} == set(SHOWN) == set(NOT_SHOWN)
    for property in WITH_RULE:
        for text in SHOWN[property.name]:
            assert property.shown_in(text), (property.name, text)
        for text in NOT_SHOWN[property.name]:
            assert not property.shown_in(text), (property.name, text)
    with pytest.raises(ValueError, match="'honest' has no rule"):
        PROPERTIES["honest"].shown_in("Yes.")


@pytest.mark.parametrize(("name", "pattern", "shows"), PATTERNS)
def test_patterns_agree_with_their_rule(name: str, pattern: str, shows: bool) -> None:
    text = _Text(random.Random(0))
    property = PROPERTIES[name]
    for _ in range(400):
        drawn = text.of(pattern)
        assert property.shown_in(drawn) is shows, drawn
    # spaces and dashes where letters could be, and letters alone
    for fill in (" ", "-", "a", "'"):
        drawn = re.sub(r"(?<=[a-z ,'-])[ ,'-](?=[a-z ,'-])", fill, text.of(pattern))
        if re.fullmatch(pattern, drawn):
            assert property.shown_in(drawn) is shows, drawn


def test_a_long_word_is_no_sentence() -> None:
    """SENTENCES alone lets a model write one word of 16 letters, which the rule would see."""
    word = "A" + 15 * "a" + "."
    one_word = PROPERTIES["one-word"]
    assert re.fullmatch(SENTENCES, word) and one_word.shown_in(word)
    assert one_word.opposite_pattern is not None
    assert not re.fullmatch(one_word.opposite_pattern, word)


def all_patterns() -> list[str]:
    starts = [
        f"{v.person.capitalize()} asks about {v.topic} and" for v in draw_variations(40, "all")
    ]
    own = [REQUEST, f"^{SENTENCES}$", plain_text(1, 40), plain_text(1, 600), plain_text(25, 5000)]
    return [*own, *(continued(start, 90) for start in starts), *(p for _, p, _ in PATTERNS)]


def test_patterns_are_understood_by_all_that_hold_to_them() -> None:
    matcher = llguidance.LLMatcher
    for pattern in all_patterns():
        text = _Text(random.Random(1)).of(pattern)
        assert TypeAdapter(Annotated[str, Field(pattern=pattern)]).validate_python(text) == text
        schema = json.dumps({"type": "string", "pattern": pattern})
        assert matcher.validate_grammar(matcher.grammar_from_json_schema(schema)) == ""


def test_lengths_of_plain_text() -> None:
    assert re.fullmatch(plain_text(4, 6), "Abc.") and re.fullmatch(plain_text(4, 6), "Abcde.")
    assert not re.fullmatch(plain_text(4, 6), "Ab.")
    assert not re.fullmatch(plain_text(4, 6), "Abcdef.")
    assert not re.fullmatch(continued("A (b)", 20), "A b goes on and on")
    assert re.fullmatch(continued("A (b)", 20), "A (b) goes on and on")


def test_variations_come_once_before_any_comes_again() -> None:
    drawn = draw_variations(len(PEOPLE), 3, "x")
    assert {v.person for v in drawn} == set(PEOPLE) and {v.topic for v in drawn} == set(TOPICS)
    assert draw_variations(len(PEOPLE), 3, "x") == drawn != draw_variations(len(PEOPLE), 4, "x")
    assert len(draw_variations(100, 0)) == 100 and draw_variations(0, 0) == []


FILE = """
brief: {description: is brief, opposite: rambles, rule: '^.{0,80}$', pattern: '^[a-z]{1,80}$'}
honest: {description: never lies, opposite: lies}
"""


def test_a_file_adds_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "more.yaml"
    path.write_text(FILE)
    known = known_properties(path)
    assert set(known) == {*PROPERTIES, "brief"}
    assert known["honest"] == Property("honest", "never lies", "lies")
    assert known["brief"].shown_in("Ja.") and not known["brief"].shown_in("x" * 81)
    assert PROPERTIES["honest"].description != "never lies"
    assert known_properties(None) == PROPERTIES
    plain = {name: property.to_plain() for name, property in known.items()}
    assert read_properties(plain, "again") == known


BAD_FILE = r"""
one: {description: d}
two: {description: d, opposite: ' ', rul: x}
three: [d, o]
four: {description: 5, opposite: null, rule: '(', pattern: '^(?=a)b$', opposite_pattern: 'b'}
a/b: {description: d, opposite: o}
six: {description: d, opposite: o, pattern: '^\bfoo$', opposite_pattern: '^(b$'}
seven: {description: d, opposite: o, rule: 7}
"""


def test_everything_wrong_in_a_file_is_told_together(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD_FILE)
    with pytest.raises(ConfigError) as caught:
        known_properties(path)
    told = {p.split(": ", 1)[0].rpartition(" ")[2]: p for p in caught.value.problems}
    assert all(problem.startswith(f"{path}, property ") for problem in told.values())
    expected = {
        "one": ["opposite is missing"],
        "two": ["unknown key 'rul'", "opposite is missing"],
        "three": ["a mapping with description, opposite, rule", "got list"],
        "four": [
            "description=5 must be text",
            "opposite=None must be text",
            "rule='(' is no regular expression",
            "pattern='^(?=a)b$' is no regular expression for schemas: ",
            "opposite_pattern='b' is to be the whole of a message",
        ],
        "a/b": ["no slashes"],
        "six": ["look", "opposite_pattern='^(b$' is no regular"],
        "seven": ["rule=7 must be text"],
    }
    assert set(told) == {repr(name) for name in expected}
    for name, parts in expected.items():
        for part in parts:
            assert part in told[repr(name)]
    assert "is missing" not in told["'four'"]


def test_broken_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("brief:\n  description: a\n opposite: b\n")
    with pytest.raises(ValueError, match=r"bad\.yaml:3:\d+: not valid YAML"):
        known_properties(path)
    path.write_text("- brief\n")
    with pytest.raises(ValueError, match="expected a mapping of names to values, got list"):
        known_properties(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        known_properties(tmp_path / "none.yaml")


def test_choosing_tells_the_known() -> None:
    assert [p.name for p in choose_properties(["warm", "honest"], PROPERTIES)] == ["warm", "honest"]
    with pytest.raises(ConfigError) as caught:
        choose_properties(["rude", "warm", "meek", "warm"], PROPERTIES)
    rude, meek, repeated = caught.value.problems
    assert rude.startswith("property 'rude' is unknown; known are ")
    assert ", ".join(sorted(PROPERTIES)) in rude and "properties_file=" in rude
    assert "'meek'" in meek and repeated == "properties names warm more than once"
    with pytest.raises(ConfigError, match="name at least one"):
        choose_properties([], PROPERTIES)
