"""BIG-Bench-Hard: tasks, splits, scoring, generated items, training data and methods.

uv run pytest tests/training/domains/bbh/test_bbh.py
"""

import gc
import hashlib
import itertools
import json
import math
import os
import random
import re
import statistics
import string
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bbh_world import (
    BBH,
    NAMES,
    bbh_run,
    bos_tokenizer,
    generated,
    save_bbh_model,
    without_times,
    write_files,
)
from places import ROOT
from tiny_chat import chat_tokenizer
from tiny_models import hf_greedy, hf_model
from transformers import PreTrainedTokenizerFast

from training.api import Datum
from training.domains.bbh.config import BBHConfig
from training.domains.bbh.data import TaskData, load_data, split
from training.domains.bbh.generated import FAMILIES, THINGS, generate_items
from training.domains.bbh.items import Item
from training.domains.bbh.methods import TOO_LONG, TaskResult
from training.domains.bbh.results import mean_accuracy, result_rows
from training.domains.bbh.scoring import guess, is_right, is_scorable, majority, read_answer
from training.domains.bbh.tasks import BY_NAME, TASKS, BBHTask, choose_tasks
from training.domains.bbh.text import LossMask, PromptTokens
from utils.config.entrypoint import ConfigError

pytestmark = pytest.mark.usefixtures("one_torch_thread")
needs_bbh = pytest.mark.skipif(not BBH.is_dir(), reason=f"{BBH} is absent")

# name, items, generation length, answers, choices (Akyürek et al., arXiv 2411.07279)
PUBLISHED = (
    ("boolean_expressions", 250, 1, "'True' or 'False'", 2),
    ("causal_judgement", 187, 1, "'Yes' or 'No'", 2),
    ("date_understanding", 250, 3, "letter", 6),
    ("disambiguation_qa", 250, 3, "letter", 3),
    ("dyck_languages", 250, 3, "parentheses", None),
    ("formal_fallacies", 250, 1, "'valid' or 'invalid'", 2),
    ("geometric_shapes", 250, 3, "letter", 11),
    ("hyperbaton", 250, 3, "letter", 2),
    ("logical_deduction_five_objects", 250, 3, "letter", 5),
    ("logical_deduction_seven_objects", 250, 3, "letter", 7),
    ("logical_deduction_three_objects", 250, 3, "letter", 3),
    ("movie_recommendation", 250, 3, "letter", 4),
    ("multistep_arithmetic_two", 250, 3, "integer", None),
    ("navigate", 250, 1, "'Yes' or 'No'", 2),
    ("object_counting", 250, 2, "integer", None),
    ("penguins_in_a_table", 146, 3, "letter", 5),
    ("reasoning_about_colored_objects", 250, 3, "letter", 18),
    ("ruin_names", 250, 3, "letter", 4),
    ("salient_translation_error_detection", 250, 3, "letter", 6),
    ("snarks", 178, 3, "letter", 2),
    ("sports_understanding", 250, 1, "'yes' or 'no'", 2),
    ("temporal_sequences", 250, 3, "letter", 4),
    ("tracking_shuffled_objects_five_objects", 250, 3, "letter", 5),
    ("tracking_shuffled_objects_seven_objects", 250, 3, "letter", 7),
    ("tracking_shuffled_objects_three_objects", 250, 3, "letter", 3),
    ("web_of_lies", 250, 1, "'Yes' or 'No'", 2),
    ("word_sorting", 250, 50, "words", None),
)
CHANCE = 26.35


@pytest.fixture(scope="module")
def real() -> list[TaskData]:
    return load_data(TASKS, data_dir=BBH, source="auto", all_named=True, seed=42, size=1, k=10)


# ----------------------------------------------------------------------------------------- tasks


def test_table_of_tasks() -> None:
    assert [task.name for task in TASKS] == [row[0] for row in PUBLISHED]
    for task, (_, _, length, answers, choices) in zip(TASKS, PUBLISHED, strict=True):
        assert (task.generation_length, task.num_choices) == (length, choices)
        if answers.startswith("'"):
            assert task.answer_format == "choice"
            assert answers in task.hint
        else:
            assert task.answer_format == answers
        assert task.instruction == f"{task.question} {task.hint}"
    assert round(statistics.fmean(task.chance for task in TASKS), 2) == CHANCE


@needs_bbh
def test_published_files_are_those_of_the_table(real: list[TaskData]) -> None:
    assert [len(data.items) for data in real] == [row[1] for row in PUBLISHED]
    for data in real:
        if data.task.answer_format == "choice":
            assert {f"'{item.target}'" for item in data.items} == set(
                re.findall("'[A-Za-z]+'", data.task.hint)
            )


def test_choosing_tasks() -> None:
    assert choose_tasks([]) == list(TASKS)
    assert choose_tasks([], 25) == list(TASKS[25:])
    assert choose_tasks([], 2, 4) == list(TASKS[2:4])
    assert [t.name for t in choose_tasks(["snarks", "navigate"])] == ["snarks", "navigate"]
    for start, end in ((27, None), (-1, None), (3, 3), (5, 4), (0, 28), (0, -1)):
        with pytest.raises(ConfigError, match=f"task_start={start}, task_end={end}: 0 <= .* <= 27"):
            choose_tasks([], start, end)
    with pytest.raises(ConfigError, match=r"unknown|names \['nope'\]; known are boolean_expr"):
        choose_tasks(["nope", "snarks"])
    with pytest.raises(ConfigError, match="each name once"):
        choose_tasks(["snarks", "snarks"])


# ---------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("num_items", "seed", "first"),
    [
        (250, 42, [44, 98, 184, 123, 121, 167, 9, 176, 197, 113]),
        (250, 43, [157, 203, 40, 97, 174, 61, 53, 82, 1, 222]),
        (187, 42, [2, 66, 12, 61, 99, 36, 176, 69, 53, 13]),
        (146, 42, [138, 18, 82, 51, 74, 113, 130, 30, 134, 121]),
        (178, 42, [149, 36, 15, 60, 13, 144, 64, 104, 105, 19]),
    ],
)
def test_published_splits(num_items: int, seed: int, first: list[int]) -> None:
    items = [Item(str(i), "x") for i in range(num_items)]
    parts = split(items, 10, random.Random(seed))
    assert [int(item.input) for item in parts.demonstrations] == first
    assert [int(item.input) for item in parts.evaluated] == parts.indices
    assert sorted([*first, *parts.indices]) == list(range(num_items))
    everything = split(items, 0, random.Random(seed))
    assert everything.demonstrations == []
    assert everything.indices == [*first, *parts.indices]


# --------------------------------------------------------------------------------------- scoring


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("snarks", " (B)\n\nQ: next", "(b)"),
        ("snarks", "b", "(b)"),
        ("snarks", " C. because", "(c)"),
        ("snarks", "B) that", "(b)"),
        ("snarks", "(A).", "(a)"),
        ("snarks", "(A", "(a"),
        ("snarks", "Answer", "(a)"),
        ("snarks", " .", ""),
        ("snarks", " \n ", ""),
        ("snarks", "", ""),
        ("navigate", "\nYES.", "yes"),
        ("navigate", " Yes, since", "yes,"),
        ("navigate", " no\nQ: next", "no"),
        ("formal_fallacies", "in valid", "in"),
        ("boolean_expressions", " True and", "true"),
        ("multistep_arithmetic_two", " -12 so", "-12"),
        ("multistep_arithmetic_two", "3.5", "3"),
        ("object_counting", "12\n", "12"),
        ("word_sorting", " Ant bee\nQ: next", "ant bee"),
        ("word_sorting", "ant bee - cow", "ant bee"),
        ("word_sorting", "ant x-ray", "ant x"),
        ("word_sorting", "ant bee. Cow", "ant bee"),
        ("word_sorting", "-", ""),
        ("dyck_languages", " ] ) }\n\n", "] ) }"),
        ("dyck_languages", "> ) - that is", "> )"),
        ("dyck_languages", "]) }", "]) }"),
        ("dyck_languages", "", ""),
    ],
)
def test_reading_answers(name: str, text: str, answer: str) -> None:
    assert read_answer(text, BY_NAME[name]) == answer


def test_right_answers_are_the_same_text_in_any_case() -> None:
    assert is_right("true", " True\n")
    assert not is_right("true.", "True")
    assert not is_right("", "True")


def test_majority_takes_the_first_in_the_alphabet_of_those_most_frequent() -> None:
    assert majority(["b"]) == "b"
    assert majority(["c", "b", "b", "a"]) == "b"
    assert majority(["b", "a", "b", "a", "c"]) == "a"
    assert majority(["(b)", "(a)", ""]) == ""
    assert majority(["10", "9"]) == "10"
    assert majority(["b", "a"]) == majority(["a", "b"]) == "a"


@needs_bbh
def test_unscorable_targets_of_the_published_files(real: list[TaskData]) -> None:
    found = {
        data.task.name: targets
        for data in real
        if (targets := [i.target for i in data.items if not is_scorable(i.target, data.task)])
    }
    assert {name: len(targets) for name, targets in found.items()} == {
        "movie_recommendation": 1,
        "ruin_names": 2,
    }
    assert found["movie_recommendation"] == ["Monsters, Inc"]
    for data in real:
        for item in data.items:
            if is_scorable(item.target, data.task):
                assert is_right(read_answer(f" {item.target}\n\nQ:", data.task), item.target)


@needs_bbh
def test_guessing_on_the_published_files_is_at_chance(real: list[TaskData]) -> None:
    means = []
    for seed in range(42, 47):
        run = bbh_run(None, "", 27, seed=seed, method="random_guessing", k=10)
        results = list(run.results(real, []))
        assert [r.num_items for r in results] == [row[1] - 10 for row in PUBLISHED]
        means.append(mean_accuracy(results))
        rows = result_rows(results, lambda name: BY_NAME[name].chance)
        assert round(rows[-1][3], 2) == CHANCE
    variance = sum(
        t.chance * (100 - t.chance) / (row[1] - 10) for t, row in zip(TASKS, PUBLISHED, strict=True)
    )
    error = math.sqrt(variance) / 27
    assert error < 1
    for mean in means:
        assert abs(mean - CHANCE) < 3 * error
    assert abs(statistics.fmean(means) - CHANCE) < 3 * error / math.sqrt(5)
    assert len(set(means)) > 1


def test_a_guess_is_right_as_often_as_there_are_choices() -> None:
    rng = random.Random(0)
    for task in TASKS:
        right = sum(guess(task, rng) for _ in range(2000))
        share = task.chance / 100
        assert abs(right - 2000 * share) <= 4 * math.sqrt(2000 * share * (1 - share))


# ------------------------------------------------------------------------------- generated items


def options_of(text: str) -> list[str]:
    """The texts of the options, which must be lettered in order."""
    lines = text.partition("\nOptions:\n")[2].splitlines()
    letters = [line[:4] for line in lines]
    assert letters == [f"({string.ascii_uppercase[i]}) " for i in range(len(lines))]
    return [line[4:] for line in lines]


def lettered(options: Sequence[str], is_answer: Callable[[str], bool]) -> str:
    [place] = [i for i, option in enumerate(options) if is_answer(option)]
    return f"({string.ascii_uppercase[place]})"


def solve_boolean(text: str) -> str:
    words = text.removesuffix(" is").split()
    assert set(words) <= {"True", "False", "and", "or", "not", "(", ")"}
    return str(eval(" ".join(words)))


def solve_dyck(text: str) -> str:
    pairs = {"(": ")", "[": "]", "{": "}", "<": ">"}
    stack: list[str] = []
    for bracket in text.partition(": ")[2].split():
        if bracket in pairs:
            stack.append(bracket)
        else:
            assert pairs[stack.pop()] == bracket
    return " ".join(pairs[bracket] for bracket in reversed(stack))


USUAL_ORDER = (
    "lovely awful good strange nice | big tiny large small huge | old new ancient young | "
    "round square flat long | red blue green white black | French Polish Chinese Brazilian | "
    "wooden plastic silver woollen"
)


def solve_fallacies(text: str) -> str:
    """By all worlds of three people: valid is what holds in each where the premises do."""
    told = re.match(
        r"(All|No|Some|Most) (\w+)s are (\w+)s\. (\w+) is a (\w+)\. "
        r"Therefore \4 is (not )?a (\w+)\.",
        text,
    )
    assert told is not None
    quantifier, a, b, _, given, negated, shown = told.groups()
    people = [frozenset(who) for n in range(4) for who in itertools.combinations(range(3), n)]
    for them in itertools.product(people, repeat=2):
        which = dict(zip((a, b), them, strict=True))
        both = len(which[a] & which[b])
        holds = {
            "All": both == len(which[a]),
            "No": both == 0,
            "Some": both > 0,
            "Most": 2 * both > len(which[a]),
        }
        concluded = (0 in which[shown]) != bool(negated)
        if holds[quantifier] and 0 in which[given] and not concluded:
            return "invalid"
    return "valid"


def solve_hyperbaton(text: str) -> str:
    kinds = [kind.split() for kind in USUAL_ORDER.split(" | ")]
    place = {word: number for number, kind in enumerate(kinds) for word in kind}

    def is_usual(option: str) -> bool:
        places = [place[word] for word in option.split()[:-1]]
        return len(places) == 2 and places == sorted(set(places))

    first, second = options_of(text)
    assert sorted(first.split()) == sorted(second.split())
    return lettered([first, second], is_usual)


def solve_arithmetic(text: str) -> str:
    expression = text.removesuffix(" =")
    assert re.fullmatch(r"[-+*() 0-9]+", expression)
    return str(eval(expression))


def solve_navigate(text: str) -> str:
    ways = {"forward": 1j, "backward": -1j, "left": -1, "right": 1}
    steps = re.findall(r"Take (\d+) steps? (\w+)\.", text)
    assert len(steps) == text.count("Take")
    return "Yes" if sum(int(n) * ways[way] for n, way in steps) == 0 else "No"


def solve_counting(text: str) -> str:
    told, kind = re.fullmatch(r"I have (.*)\. How many (\w+) do I have\?", text).groups()  # pyrefly: ignore[missing-attribute]
    numbers = {"one": 1, "two": 2, "three": 3, "four": 4}
    total = 0
    for part in re.split(r", (?:and )?", told):
        number, thing = part.split()
        single = thing if numbers[number] == 1 else thing.removesuffix("s")
        assert any(single in things for things in THINGS.values())
        total += numbers[number] * (single in THINGS[kind])
    return str(total)


def solve_temporal(text: str) -> str:
    def hour(clock: str) -> int:
        number, half = int(clock[:-2]), clock[-2:]
        return number % 12 + 12 * (half == "pm")

    def span(both: str) -> range:
        start, stop = map(hour, both.split(" to "))
        return range(start, stop)

    seen = {at for both in re.findall(r"from (\w+ to \w+)\.", text) for at in span(both)}
    [up], [closed] = (re.findall(f"{verb} at (\\w+)\\.", text) for verb in ("got up", "closed"))
    free = set(range(hour(up), hour(closed))) - seen
    return lettered(options_of(text), lambda option: set(span(option)) == free)


def solve_tracking(text: str) -> str:
    holding = dict(re.findall(r"(\w+) has the (\w+) ball(?=[,.])", text))
    assert len(holding) == 3
    for a, b in re.findall(r"(\w+) and (\w+) swap balls\.", text):
        holding[a], holding[b] = holding[b], holding[a]
    [who] = re.findall(r"At the end (\w+) has the$", text, re.MULTILINE)
    return lettered(options_of(text), lambda option: option == f"{holding[who]} ball")


def solve_lies(text: str) -> str:
    """By trying who lies."""
    facts = re.findall(r"(\w+) (tells the truth|lies)\.", re.sub(r"\w+ says [^.]+\.", "", text))
    claims = re.findall(r"(\w+) says (\w+) (tells the truth|lies)\.", text)
    [asked] = re.findall(r"Does (\w+) tell the truth\?", text)
    people = sorted({person for claim in claims for person in claim[:2]})
    answers = set()
    for honest in itertools.product((True, False), repeat=len(people)):
        world = dict(zip(people, honest, strict=True))
        if all(world[who] == (what != "lies") for who, what in facts) and all(
            world[who] == (world[whom] == (what != "lies")) for who, whom, what in claims
        ):
            answers.add(world[asked])
    [answer] = answers
    return "Yes" if answer else "No"


def solve_sorting(text: str) -> str:
    words = text.partition(": ")[2].split()
    assert len(set(words)) == len(words)
    return " ".join(sorted(words))


SOLVERS: dict[str, Callable[[str], str]] = {
    "boolean_expressions": solve_boolean,
    "dyck_languages": solve_dyck,
    "formal_fallacies": solve_fallacies,
    "hyperbaton": solve_hyperbaton,
    "multistep_arithmetic_two": solve_arithmetic,
    "navigate": solve_navigate,
    "object_counting": solve_counting,
    "temporal_sequences": solve_temporal,
    "tracking_shuffled_objects_three_objects": solve_tracking,
    "web_of_lies": solve_lies,
    "word_sorting": solve_sorting,
}


def test_every_family_has_a_solver() -> None:
    assert set(SOLVERS) == set(FAMILIES) <= set(BY_NAME)
    assert len(FAMILIES) >= 8


@pytest.mark.parametrize("name", FAMILIES)
def test_generated_items(name: str) -> None:
    task = BY_NAME[name]
    for seed in (42, 43, 44):
        items = generate_items(name, 250, seed)
        assert len({item.input for item in items}) == 250
        for item in items:
            assert item.target == SOLVERS[name](item.input)
            assert is_scorable(item.target, task)
            assert is_right(read_answer(f" {item.target}", task), item.target)
            if task.answer_format == "letter":
                options = options_of(item.input)
                assert len(set(options)) == len(options) == task.num_choices
        if task.num_choices:
            counts = Counter(item.target for item in items)
            assert len(counts) == task.num_choices
            # five standard deviations of a fair draw
            share = 1 / task.num_choices
            spread = 5 * math.sqrt(250 * share * (1 - share))
            assert all(abs(n - 250 * share) < spread for n in counts.values()), counts


def test_generated_items_follow_from_the_seed_alone() -> None:
    def digest() -> str:
        items = [generate_items(name, 40, seed) for name in FAMILIES for seed in (1, 2)]
        return hashlib.sha256(json.dumps(items).encode()).hexdigest()

    program = (
        "import hashlib, json\n"
        "from training.domains.bbh.generated import FAMILIES, generate_items\n"
        "items = [generate_items(name, 40, seed) for name in FAMILIES for seed in (1, 2)]\n"
        "print(hashlib.sha256(json.dumps(items).encode()).hexdigest())"
    )
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", program]
        found = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == digest()
    assert generate_items("navigate", 40, 1) != generate_items("navigate", 40, 2)
    assert generate_items("navigate", 40, 1) == generate_items("navigate", 60, 1)[:40]


def test_a_family_that_is_too_small_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "coin", lambda rng: (rng.choice("ab"), "Yes"))
    assert len(generate_items("coin", 2, 0)) == 2
    with pytest.raises(ValueError, match="coin: only 2 different items found, 3 wanted"):
        generate_items("coin", 3, 0)


# ------------------------------------------------------------------------------------------ files


def load(folder: Path | None, names: Sequence[str], **changes: Any) -> list[TaskData]:
    given: dict[str, Any] = {"source": "auto", "all_named": True, "seed": 1, "size": 20, "k": 3}
    tasks = [BY_NAME[name] for name in names]
    return load_data(tasks, data_dir=folder, **{**given, **changes})


def test_files_in_bbhs_format(tmp_path: Path) -> None:
    data = generated(size=5)
    read = load(write_files(tmp_path / "bbh", data), NAMES)
    assert read == [replace(found, source=str(tmp_path / "bbh")) for found in data]


def test_everything_wrong_with_files_is_told_at_once(tmp_path: Path) -> None:
    write_files(tmp_path, generated(size=5))
    (tmp_path / "boolean_expressions.json").write_text("{")
    (tmp_path / "web_of_lies.json").write_text('{"examples": []}')
    (tmp_path / "snarks.json").write_bytes(b'{"examples": ["\xff"]}')
    (tmp_path / "navigate.json").write_text(
        json.dumps({"examples": [{"input": "a", "target": "Yes"}] * 9 + [{"input": "a"}, 3]})
    )
    (tmp_path / "hyperbaton.json").write_text(
        json.dumps({"examples": [{"input": "a", "target": " "}, {"input": 1, "target": "x"}] * 2})
    )
    (tmp_path / "ruin_names.json").mkdir()
    names = (*NAMES, "snarks", "navigate", "hyperbaton", "ruin_names")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, names, k=5)
    problems = caught.value.problems
    expected = [
        r"boolean_expressions\.json, line 1, byte \d+: no JSON",
        r'web_of_lies\.json: an object with a list "examples"',
        r"snarks\.json, line 1, byte 16: not UTF-8",
        r"navigate\.json, examples\[9\]: needs text",
        r"navigate\.json, examples\[10\]: needs text",
        *(rf"hyperbaton\.json, examples\[{i}\]: needs text" for i in range(4)),
        r"ruin_names\.json: no such file",
        r"k=5: dyck_languages has 5 items; k must be smaller",
    ]
    assert len(problems) == len(expected)
    for problem, pattern in zip(problems, expected, strict=True):
        assert re.search(pattern, problem), problem
    with pytest.raises(ConfigError, match=r"data_dir=.*nowhere: no such folder"):
        load(tmp_path / "nowhere", NAMES)


def test_what_cannot_be_generated_is_left_out_unless_it_was_named() -> None:
    names = ("snarks", "navigate", "causal_judgement")
    [only] = load(None, names, source="generated", all_named=False)
    assert (only.task.name, only.source) == ("navigate", "a generator of this project")
    assert only.items == generate_items("navigate", 20, 1)
    for all_named, asked in ((True, names), (False, ("snarks",))):
        with pytest.raises(ConfigError, match=r"snarks.*cannot be generated; what can are boolea"):
            load(None, asked, source="generated", all_named=all_named)
    with pytest.raises(ConfigError, match="k=20: navigate has 20 items"):
        load(None, ("navigate",), source="generated", k=20)


def test_without_the_hub_items_are_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_arguments: Any, **_options: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    [found] = load(None, ("navigate",))
    assert found.source == "a generator of this project"
    with pytest.raises(ConfigError, match=r"could not be loaded \(no network\); give data_dir="):
        load(None, ("navigate",), source="hub")


def test_items_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(hub_id: str, name: str, *, split: str) -> list[dict[str, str]]:
        return [{"input": f"{hub_id} {name} {split} {i}", "target": "Yes"} for i in range(4)]

    monkeypatch.setattr("datasets.load_dataset", rows)
    [found] = load(None, ("navigate",))
    assert found.source == "lukaemon/bbh"
    assert found.items[3] == Item("lukaemon/bbh navigate test 3", "Yes")


# --------------------------------------------------------------------------------- training data

TASK = BY_NAME["word_sorting"]
ITEMS = [Item("c b", "b c"), Item("Sort é a.", "a é"), Item("z", "z")]
TOKENIZERS = {"plain": chat_tokenizer(), "bos": bos_tokenizer()}
Part = tuple[str, str]


def spelled_out(tokenizer: PreTrainedTokenizerFast, parts: list[Part]) -> list[tuple[int, float]]:
    """(token, weight) of texts that are trained: "all" of their tokens, the "first", or "none"."""
    tokens: list[tuple[int, float]] = []
    for text, trained in parts:
        encoded = tokenizer.encode(text, add_special_tokens=False)
        tokens += [
            (token, float(trained == "all" or (trained == "first" and place == 0)))
            for place, token in enumerate(encoded)
        ]
    return tokens


def parts_of(mask: LossMask, items: Sequence[Item]) -> list[Part]:
    """A training sequence as the paper describes it: an answer's end is trained with it."""
    other = "all" if mask == "all_tokens" else "none"
    parts = [(f"{TASK.question} {TASK.hint}\n\n", other)]
    for number, item in enumerate(items):
        is_trained = mask != "last_output" or number == len(items) - 1
        parts += [
            (f"Q: {item.input}\nA:", other),
            (f" {item.target}", "all" if is_trained else "none"),
            ("\n\n", other if other == "all" else "first" if is_trained else "none"),
        ]
    return parts


def shifted(datum: Datum) -> tuple[list[int], list[tuple[int, float]]]:
    """The inputs, and each target with its weight."""
    inputs = {name: tensor.to_numpy() for name, tensor in datum.loss_fn_inputs.items()}
    targets = zip(inputs["target_tokens"].tolist(), inputs["weights"].tolist(), strict=True)
    return datum.model_input.to_ints(), list(targets)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("mask", ["all_tokens", "last_output", "all_outputs"])
def test_loss_masks(mask: LossMask, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    datum = PromptTokens(tokenizer).datum(TASK, ITEMS, mask)
    parts = parts_of(mask, ITEMS)
    expected = spelled_out(tokenizer, parts)
    if kind == "bos":
        assert tokenizer.bos_token_id is not None
        expected = [(tokenizer.bos_token_id, 0.0), *expected]
    if mask == "all_tokens":
        assert tokenizer.eos_token_id is not None
        expected.append((tokenizer.eos_token_id, 1.0))
    inputs, targets = shifted(datum)
    assert inputs == [token for token, _ in expected[:-1]]
    assert targets == expected[1:]
    learnt = tokenizer.decode([token for token, weight in targets if weight])
    end = "\n\n" if kind == "bos" else "\n"
    if mask == "all_outputs":
        assert learnt == "".join(f" {item.target}{end}" for item in ITEMS)
    elif mask == "last_output":
        assert learnt == f" {ITEMS[-1].target}{end}"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_prompts_begin_as_training_sequences_do(kind: str) -> None:
    tokens = PromptTokens(TOKENIZERS[kind])
    inputs, _ = shifted(tokens.datum(TASK, ITEMS, "all_outputs"))
    for shown in range(len(ITEMS)):
        prompt = tokens.prompt(TASK, ITEMS[:shown], ITEMS[shown].input)
        assert inputs[: len(prompt)] == prompt
        answer = TOKENIZERS[kind].encode(f" {ITEMS[shown].target}", add_special_tokens=False)
        assert inputs[len(prompt) :][: len(answer)] == answer
        text = prompt_text(TASK, ITEMS[:shown], ITEMS[shown].input)
        assert tokens.decode(prompt) == text
        assert prompt.count(TOKENIZERS[kind].bos_token_id) == (kind == "bos")


def test_answers_are_measured_with_the_space_before_them() -> None:
    assert PromptTokens(TOKENIZERS["plain"]).answer_length(["ab", "abcd", "c"]) == 5


def test_published_settings() -> None:
    def settings(method: Any) -> Any:
        config = BBHConfig(method=method)
        return config.settings(model_name="m", seed=42, max_parallel=16, context=4096, num_tasks=27)

    found = {m: settings(m) for m in ("ttt", "shared_ttt", "e2e", "shared_e2e")}
    assert {m: (s.learning_rate, s.adapt.batch_size, s.num_epochs) for m, s in found.items()} == {
        "ttt": (1e-4, 5, 1),
        "shared_ttt": (5e-5, 5, 1),
        "e2e": (1e-4, 5, 4),
        "shared_e2e": (5e-5, 5, 6),
    }
    # a tenth of 8, 216, 8 and 324 steps
    assert [s.adapt.warmup_steps for s in found.values()] == [0, 21, 0, 32]
    ttt = found["ttt"]
    assert (ttt.k, ttt.num_samples, ttt.loss_mask, ttt.shuffle) == (10, 40, "all_outputs", True)
    assert (ttt.leave_one_out, ttt.vote_permutations) == (False, 1)
    assert ttt.adapt.lora == {
        "rank": 64,
        "lora_alpha": 64.0,
        "lora_dropout": 0.05,
        "target_modules": ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    }
    assert (ttt.adapt.weight_decay, ttt.adapt.eps, ttt.adapt.beta2) == (0.01, 1e-8, 0.999)
    name = BBHConfig(method="ttt").experiment_name(43)
    assert name == "TTT_10_all_outputs_40_True_False_5_False_5_1_0.0001_64_64.0_0.05_43"


# --------------------------------------------------------------------------------------- methods


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_bbh_model(tmp_path_factory.mktemp("model"))


DATA = generated()


@pytest.fixture
def results(service: Any, model: str) -> Callable[..., list[TaskResult]]:
    """results(method, data=DATA, done=(), **settings) of a run."""

    def run(
        method: str, data: Sequence[TaskData] = DATA, done: Sequence[str] = (), **settings: Any
    ) -> list[TaskResult]:
        made = bbh_run(service, model, len(data), method=method, **settings)
        return list(made.results(data, done))

    return run


def answers(results: Sequence[TaskResult]) -> dict[tuple[str, int], str | None]:
    return {(r.task, p.index): p.answer for r in results for p in r.predictions}


def prompt_text(task: BBHTask, shown: Sequence[Item], question: str) -> str:
    demonstrations = "".join(f"Q: {item.input}\nA: {item.target}\n\n" for item in shown)
    return f"{task.question} {task.hint}\n\n{demonstrations}Q: {question}\nA:"


class Reference:
    """transformers, one prompt at a time."""

    def __init__(self, model: str) -> None:
        self._model = hf_model(model)
        self._tokenizer = chat_tokenizer()

    def answer(self, data: TaskData, shown: Sequence[Item], question: str) -> str:
        targets = [f" {item.target}" for item in data.items]
        longest = max(len(self._tokenizer.encode(t, add_special_tokens=False)) for t in targets)
        length = max(data.task.generation_length, longest)
        prompt = self._tokenizer.encode(
            prompt_text(data.task, shown, question), add_special_tokens=False
        )
        tokens = hf_greedy(self._model, prompt, length, self._tokenizer.eos_token_id)
        text = str(self._tokenizer.decode(tokens, skip_special_tokens=True))
        return read_answer(text.partition("\nQ:")[0], data.task)


def permutations(data: TaskData, count: int, *, seed: int = 42, k: int = 3) -> Any:
    """The split, then the permutations: all from one stream."""
    rng = random.Random(seed)
    order = list(range(len(data.items)))
    rng.shuffle(order)
    demonstrations = [data.items[i] for i in order[:k]]
    return [rng.sample(demonstrations, k) for _ in range(count)], order[k:]


@pytest.mark.parametrize("k", [0, 3])
def test_baseline_is_greedy_decoding(
    k: int, model: str, results: Callable[..., list[TaskResult]]
) -> None:
    found = results("baseline", k=k)
    reference = Reference(model)
    for data, result in zip(DATA, found, strict=True):
        [shown], indices = permutations(data, 1, k=k)
        assert [p.index for p in result.predictions] == indices
        for p in result.predictions:
            item = data.items[p.index]
            assert p.answer == reference.answer(data, shown, item.input)
            assert (p.question, p.target) == (item.input, item.target.lower())
            assert p.right == (p.answer == p.target)
            assert (p.votes, p.event, p.scorable) == ([], None, True)
        right = sum(p.right for p in result.predictions)
        assert result.accuracy == 100 * right / len(result.predictions)
        assert result.num_items == len(data.items) - k
        assert (result.events, result.num_train_tokens, result.train_seconds) == ({}, 0, 0.0)
    assert len(set(answers(found).values())) > 3, "the answers are too alike: change the model"


def test_a_vote_is_the_mode_of_separate_permutations(
    model: str, results: Callable[..., list[TaskResult]]
) -> None:
    found = results("baseline", majority_vote=True, vote_permutations=4)
    reference = Reference(model)
    differing = 0
    for data, result in zip(DATA, found, strict=True):
        shown_V, _ = permutations(data, 4)
        for p in result.predictions:
            votes = [reference.answer(data, shown, p.question) for shown in shown_V]
            assert p.votes == votes
            assert p.answer == min(statistics.multimode(votes))
            differing += len(set(votes)) > 1
    assert differing, "no vote was split: change the model"


def test_without_shuffle_demonstrations_keep_their_order(
    model: str, results: Callable[..., list[TaskResult]]
) -> None:
    [result] = results("baseline", DATA[:1], shuffle=False)
    reference = Reference(model)
    parts = split(DATA[0].items, 3, random.Random(42))
    for p in result.predictions:
        assert p.answer == reference.answer(DATA[0], parts.demonstrations, p.question)


def test_leave_one_out_drops_the_last_demonstration(
    model: str, results: Callable[..., list[TaskResult]]
) -> None:
    found = results("baseline", leave_one_out=True)
    reference = Reference(model)
    for data, result in zip(DATA, found, strict=True):
        [shown], _ = permutations(data, 1)
        for p in result.predictions:
            assert p.answer == reference.answer(data, shown[:2], p.question)


@pytest.mark.parametrize("method", ["ttt", "e2e"])
def test_tasks_together_are_as_tasks_alone(
    method: str, results: Callable[..., list[TaskResult]]
) -> None:
    together = results(method)
    alone = [result for data in DATA for result in results(method, [data])]
    assert without_times(together) == without_times(alone)
    assert [r.task for r in together] == [data.task.name for data in DATA]
    assert answers(together) != answers(results("baseline")), "nothing was learnt: raise lr"
    for result in together:
        assert result.num_train_tokens > 0
        assert result.train_seconds > 0
        assert result.eval_seconds > 0


@pytest.mark.parametrize("mask", ["all_tokens", "last_output"])
def test_training_is_that_of_adapt(
    mask: LossMask, service: Any, model: str, results: Callable[..., list[TaskResult]]
) -> None:
    """The same data through adapt() by hand, then the same prompts."""
    from training.adapt import AdaptJob, adapt
    from training.api import ModelInput, SamplingParams

    data = DATA[0]
    run = bbh_run(service, model, 1, method="ttt", loss_mask=mask)
    shown, indices = permutations(data, 4 + 1)
    tokens = PromptTokens(chat_tokenizer())
    datums = [tokens.datum(data.task, items, mask) for items in shown[:-1]]
    samplers: dict[int, Any] = {}
    job = AdaptJob(datums, learning_rate=0.004, num_epochs=1, seed=42)
    adapt(service, model, [job], run.settings.adapt, on_adapted=samplers.__setitem__)
    params = SamplingParams(max_tokens=6, temperature=0.0, stop=["\nQ:"])
    futures = [
        samplers[0].sample(
            ModelInput.from_ints(tokens.prompt(data.task, shown[-1], data.items[i].input)),
            1,
            params,
        )
        for i in indices
    ]
    texts = [tokens.decode(future.result().sequences[0].tokens) for future in futures]
    [result] = results("ttt", [data], loss_mask=mask)
    assert [p.index for p in result.predictions] == indices
    assert [p.answer for p in result.predictions] == [
        read_answer(text.partition("\nQ:")[0], data.task) for text in texts
    ]


def test_methods_learn_different_things(results: Callable[..., list[TaskResult]]) -> None:
    runs = [
        *(results("ttt", loss_mask=mask) for mask in ("all_tokens", "last_output", "all_outputs")),
        *(results(method) for method in ("shared_ttt", "e2e", "shared_e2e")),
        results("ttt", lora_dropout=0.5),
    ]
    found = [json.dumps(list(answers(run).values())) for run in runs]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(("shared", "single"), [("shared_ttt", "ttt"), ("shared_e2e", "e2e")])
def test_one_adapter_for_all_tasks(
    shared: str, single: str, results: Callable[..., list[TaskResult]]
) -> None:
    whole = results(shared, epochs=2)
    # a resumed run trains on the data of all tasks again
    rest = results(shared, done=[DATA[0].task.name], epochs=2)
    assert without_times(rest) == without_times(whole[1:])
    assert list(results(shared, done=[data.task.name for data in DATA])) == []
    [alone] = results(single, DATA[:1], epochs=2)
    [of_one] = results(shared, DATA[:1], epochs=2)
    assert without_times([of_one]) == without_times([alone])
    assert answers(whole[:1]) != answers([alone])


@pytest.mark.parametrize("method", ["e2e", "shared_e2e"])
def test_end_to_end_shows_no_demonstrations(
    method: str, results: Callable[..., list[TaskResult]]
) -> None:
    """A learning rate of 0 leaves the model as it was: it answers as without demonstrations."""
    found = answers(results(method, lr=0.0))
    zero_shot = answers(results("baseline", k=0))
    assert found.items() <= zero_shot.items()
    assert len(found) == len(zero_shot) - 3 * len(DATA)
    [result] = results(method, DATA[:1], lr=0.0, epochs=2)
    tokens = PromptTokens(chat_tokenizer())
    shown = split(DATA[0].items, 3, random.Random(42)).demonstrations
    lengths = [
        len(tokens.datum(DATA[0].task, [i], "last_output").model_input.to_ints()) for i in shown
    ]
    assert result.num_train_tokens == 2 * sum(lengths)


def test_no_training_steps_is_the_baseline(results: Callable[..., list[TaskResult]]) -> None:
    baseline = without_times(results("baseline"))
    assert without_times(results("ttt", num_training_steps=0)) == baseline
    assert without_times(results("shared_ttt", num_training_steps=0)) == baseline


def test_bounds_on_adapters_change_nothing(results: Callable[..., list[TaskResult]]) -> None:
    for method in ("ttt", "shared_ttt", "baseline"):
        wide = without_times(results(method, majority_vote=True, vote_permutations=2))
        for bound in (1, 2):
            narrow = results(method, majority_vote=True, vote_permutations=2, max_parallel=bound)
            assert without_times(narrow) == wide


class Counting:
    """A service that notes how many adapters there are when another is made."""

    def __init__(self, service: Any) -> None:
        self._service = service
        self.largest = 0

    def create_lora_training_client(self, *arguments: Any, **options: Any) -> Any:
        from training.backends.local.service import LocalSamplingClient, LocalTrainingClient

        gc.collect()
        clients = (LocalTrainingClient, LocalSamplingClient)
        alive = sum(type(thing) in clients for thing in gc.get_objects())
        self.largest = max(self.largest, alive + 1)
        return self._service.create_lora_training_client(*arguments, **options)


def test_no_more_adapters_are_alive_than_allowed(service: Any, model: str) -> None:
    counting = Counting(service)
    run = bbh_run(counting, model, 3, method="ttt", max_parallel=1)
    assert len(list(run.results(DATA, []))) == 3
    assert counting.largest == 1


def test_prompts_over_the_context_are_counted(results: Callable[..., list[TaskResult]]) -> None:
    data = DATA[0]
    tokens = PromptTokens(chat_tokenizer())
    [shown], indices = permutations(data, 1)
    length = tokens.answer_length([item.target for item in data.items])
    needed = {
        i: len(tokens.prompt(data.task, shown, data.items[i].input)) + length for i in indices
    }
    context = sorted(needed.values())[len(needed) // 2]
    too_long = {i for i, n in needed.items() if n > context}
    assert 0 < len(too_long) < len(needed)
    [whole], [cut] = (results("baseline", [data], context=c) for c in (4096, context))
    assert cut.events == {TOO_LONG: len(too_long)}
    for before, after in zip(whole.predictions, cut.predictions, strict=True):
        if after.index in too_long:
            assert (after.answer, after.right, after.event) == (None, False, TOO_LONG)
        else:
            assert after == before
    assert cut.num_items == whole.num_items
    assert cut.accuracy == 100 * sum(p.right for p in cut.predictions) / cut.num_items


def test_a_vote_without_room_for_every_permutation_is_counted_once(
    results: Callable[..., list[TaskResult]],
) -> None:
    [result] = results("baseline", DATA[:1], majority_vote=True, context=20)
    assert result.events == {TOO_LONG: len(result.predictions)}
    assert {p.answer for p in result.predictions} == {None}
    assert {tuple(p.votes) for p in result.predictions} == {()}


def test_training_sequences_over_the_context_are_counted(
    results: Callable[..., list[TaskResult]],
) -> None:
    data = DATA[0]
    tokens = PromptTokens(chat_tokenizer())
    shown = split(data.items, 3, random.Random(42)).demonstrations
    lengths = sorted(
        tokens.datum(data.task, [item], "last_output").model_input.length for item in shown
    )
    assert lengths[0] < lengths[-1]
    [result] = results("e2e", [data], context=lengths[-1] - 1)
    dropped = sum(n == lengths[-1] for n in lengths)
    assert result.events["training sequence over the context"] == dropped
    [none_left] = results("e2e", [data], context=20)
    assert none_left.events["training sequence over the context"] == 3
    assert none_left.num_train_tokens == 0


def test_what_stops_the_model_is_no_answer(model: str) -> None:
    """A model that always goes on with the next question has not answered (Q)."""
    from training.domains.bbh.methods import BBHRun

    class NextQuestion:
        def create_sampling_client(self, **_options: Any) -> Any:
            return self

        def sample(self, _prompt: Any, _count: int, _params: Any) -> Any:
            from concurrent.futures import Future

            from training.api import APIFuture, SampledSequence, SampleResponse

            future: Future[SampleResponse] = Future()
            tokens = chat_tokenizer().encode("\nQ:", add_special_tokens=False)
            future.set_result(SampleResponse([SampledSequence("stop", np.array(tokens))]))
            return APIFuture(future)

    task = BY_NAME["reasoning_about_colored_objects"]
    data = TaskData(task, [Item("a", "(Q)"), Item("b", "(Q)")], "a test")
    settings = bbh_run(None, model, 1, method="baseline", k=0).settings
    client: Any = NextQuestion()
    [result] = BBHRun(client, chat_tokenizer(), settings).results([data], [])
    assert [p.answer for p in result.predictions] == ["", ""]
    assert result.accuracy == 0.0


def test_max_items_takes_the_first_of_the_split(results: Callable[..., list[TaskResult]]) -> None:
    whole, some = results("baseline"), results("baseline", max_items=2)
    assert [r.predictions for r in some] == [r.predictions[:2] for r in whole]


def test_published_lengths_cut_answers(results: Callable[..., list[TaskResult]]) -> None:
    """With one token a byte, one token is no answer but a letter."""
    found = results("baseline", DATA[:1], generation_length="published")
    assert all(len(p.answer or "") <= 1 for r in found for p in r.predictions)
