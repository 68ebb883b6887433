"""Duplicates, diversity and overlap against hand-computed values and a brute-force reference.

uv run pytest tests/utils/test_text_stats.py
"""

import json
import os
import random
import subprocess
import sys
from itertools import combinations, permutations

import pytest
from places import ROOT

from utils.duplicates import Unrepeated, remove_duplicates
from utils.shingles import Match, jaccard, normalise, words
from utils.text_stats import diversity, overlap

THRESHOLDS = [0.05, 0.3, 0.5, 0.7, 0.9, 1.0]
SEEDS = [0, 1, 2, 3]


def random_texts(seed: int, n: int = 70) -> list[str]:
    """Texts of 0 to 60 words around the border of 40, many of them edits of earlier ones."""
    rng = random.Random(seed)
    words = [
        "the",
        "an",
        "cat",
        "DOG",
        "café",
        "straße",
        "日本",
        "don't",
        "ab,cd",
        "🙂",
        "run",
        "is",
    ]
    words += ["".join(rng.choices("abcde", k=rng.randint(2, 7))) for _ in range(30)]
    texts: list[str] = []
    for _ in range(n):
        if texts and rng.random() < 0.6:
            edited = rng.choice(texts).split()
            for _ in range(rng.randrange(4)):
                place = rng.randrange(len(edited) + 1)
                edited[place : place + rng.randrange(2)] = rng.choices(words, k=rng.randrange(2))
            texts.append("  ".join(edited).upper() if rng.random() < 0.3 else " ".join(edited))
        else:
            length = rng.choice([0, 1, 2, 4, 5, 12, 30, 38, 39, 40, 41, 60])
            texts.append(" ".join(rng.choices(words, k=length)))
    return texts


def brute_jaccard(first: str, second: str) -> float:
    texts = [normalise(first), normalise(second)]
    if min(len(words(text)) for text in texts) < 40:
        sets = [
            {text[i : i + 5] for i in range(len(text) - 4)} if len(text) > 5 else {text}
            for text in texts
        ]
    else:
        sets = [{tuple(own[i : i + 5]) for i in range(len(own) - 4)} for own in map(words, texts)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def similarity(first: str, second: str) -> float:
    return jaccard(normalise(first), normalise(second))


def brute_likeness(first: str, second: str) -> float:
    """Of duplicates: `random_texts` has no numbers, no lone letters, and one negation, "don't"."""
    short = max(len(words(normalise(text))) for text in (first, second)) < 40
    negations = {text.casefold().count("don't") for text in (first, second)}
    return 0.0 if short and len(negations) > 1 else brute_jaccard(first, second)


def brute_removal(texts: list[str], threshold: float) -> Unrepeated:
    result = Unrepeated([], {})
    for index, text in enumerate(texts):
        best = Match(None, 0.0)
        for kept in result.kept:
            similarity = brute_likeness(texts[kept], text)
            if similarity > best.jaccard:
                best = Match(kept, similarity)
        if best.jaccard >= threshold:
            result.repeats[index] = best
        else:
            result.kept.append(index)
    return result


# ---- normalise ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Hello,\n\tWORLD!! ", "hello world"),
        ("don't don\N{RIGHT SINGLE QUOTATION MARK}t dont", "dont dont dont"),
        ("\uff28\uff45\uff4c\uff4c\uff4f\u3000\ufb01ne", "hello fine"),
        ("e\u0301", "\u00e9"),
        ("STRASSE straße", "strasse strasse"),
        ("zero\u200bwidth soft\u00adhyphen", "zerowidth softhyphen"),
        ("co-op/co_op", "co op co op"),
        ("2 + 2 < 5 = $3", "2 + 2 < 5 = $3"),
        ("日本語、テキスト。", "日本語 テキスト"),
        ("🙂!", "🙂"),
        ("...", ""),
        ("", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_normalise_changes_nothing_twice() -> None:
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(chr(rng.choice([rng.randrange(32, 0x3000), 39, 0x301])) for _ in range(30))
        assert normalise(normalise(text)) == normalise(text), ascii(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我喜欢吃苹果。", ["我", "喜", "欢", "吃", "苹", "果"]),
        ("สวัสดีครับ", ["ส", "วั", "ส", "ดี", "ค", "รั", "บ"]),
        ("私はコーヒーを飲む", ["私", "は", "コーヒー", "を", "飲", "む"]),
        ("한국어 단어", ["한국어", "단어"]),
        ("GPT4很好, naïve", ["gpt4", "很", "好", "naïve"]),
        ("e\u0301a \U0001f469\u200d\U0001f467", ["\u00e9a", "\U0001f469\U0001f467"]),
        ("...", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(normalise(text)) == expected


def test_texts_without_blanks_have_words() -> None:
    texts = ["我喜欢吃苹果", "我喜欢吃香蕉"]
    assert distinct(texts)[:2] == (8 / 12, 7 / 10)
    assert diversity(texts).mean_words == 6
    assert distinct(["สวัสดี สวัสดี"])[0] == 3 / 8
    # long ones are compared by words, of which a changed one costs five shingles
    long = "".join(chr(0x4E00 + i) for i in range(50))
    assert similarity(long, long[:25] + "龍" + long[26:]) == 41 / 51


# ---- similarity ----


def test_short_texts_are_compared_by_characters() -> None:
    # abcde bcdef cdefg | bcdef cdefg defgh
    assert similarity("abcdefg", "bcdefgh") == 2 / 4
    assert similarity("abcd", "ABCD!") == 1
    assert similarity("abcd", "abce") == 0
    assert similarity("", "...") == 1
    assert similarity("", "abcd") == 0


def test_long_texts_are_compared_by_words() -> None:
    words = [f"word{i}" for i in range(40)]
    changed = [*words[:20], "other", *words[21:]]
    # 36 shingles each, of which the changed word is in 5
    assert similarity(" ".join(words), " ".join(changed)) == 31 / 41
    # 39 words make both texts short: characters see how alike "word20" and "other" are
    assert similarity(" ".join(words[1:]), " ".join(words)) > 0.9


def test_a_short_and_a_long_text_can_be_duplicates() -> None:
    words = [f"word{i}" for i in range(41)]
    texts = [" ".join(words[:39]), " ".join(words), " ".join(words[:40])]
    for order in permutations(texts):
        assert remove_duplicates(order, 0.9).kept == [0]
    assert [match.index for match in overlap(texts, texts[::-1])] == [2, 1, 0]


@pytest.mark.parametrize("seed", SEEDS)
def test_jaccard_equals_brute_force(seed: int) -> None:
    for first, second in combinations(random_texts(seed, 40), 2):
        assert similarity(first, second) == brute_jaccard(first, second)


# ---- duplicates ----


def test_exact_duplicates() -> None:
    texts = ["A b", "c", "a  B!", "", "C.", "d", "?"]
    repeats = {2: Match(0, 1.0), 4: Match(1, 1.0), 6: Match(3, 1.0)}
    assert remove_duplicates(texts, 1.0) == Unrepeated([0, 1, 3, 5], repeats)


def test_no_texts_and_empty_texts() -> None:
    assert remove_duplicates([]) == Unrepeated([], {})
    assert remove_duplicates(["", "!", "a"]) == Unrepeated([0, 2], {1: Match(0, 1.0)})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("The answer is 12.", "The answer is 13."),
        ("The answer is 5.", "The answer is -5."),
        ("The answer to this is 1.5 metres", "The answer to this is 15 metres"),
        ("There are seven of them in the garden", "There are eleven of them in the garden"),
        ("I would certainly do this again", "I would certainly not do this again"),
        ("The door of the house is locked", "The door of the house isn't locked"),
        ("我喜欢在早上去公园里面跑步锻炼身体", "我不喜欢在早上去公园里面跑步锻炼身体"),
        ("Das ist eine sehr gute Idee von dir", "Das ist keine sehr gute Idee von dir"),
        ("The answer is A.", "The answer is B."),
        ("The answer is (A).", "The answer is (E)."),
        ("The right one is option C", "The right one is option D"),
        ("I would choose option A here", "I would choose option E here"),
        ("A is what I would choose here", "E is what I would choose here"),
        ("The door with the sign A\nis open", "The door with the sign E\nis open"),
        ("Much more vitamin C is needed there", "Much more vitamin D is needed there"),
        ("The flat that we live in is 12B", "The flat that we live in is 12C"),
        ("What comes after World War I?", "What comes after World War II?"),
        ("We write down the value of x first", "We write down the value of z first"),
        ("我觉得这道选择题的正确答案是A。", "我觉得这道选择题的正确答案是B。"),
        ("Правильный ответ здесь: \u0410", "Правильный ответ здесь: Б"),
    ],
)
def test_numbers_letters_and_negations_matter_in_short_texts(first: str, second: str) -> None:
    for texts in ([first, second], [second, first]):
        assert remove_duplicates(texts, 0.4) == Unrepeated([0, 1], {})
    doubled = [first, second, f"{first}!", second.upper()]
    repeats = {2: Match(0, 1.0), 3: Match(1, 1.0)}
    assert remove_duplicates(doubled, 0.4) == Unrepeated([0, 1], repeats)
    # a leak is one with other numbers too
    assert overlap([first], [second])[0].jaccard > 0.4
    # in a long text they are a small part of what is said
    rest = " ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(60))
    for texts in permutations([f"{first} {rest}", f"{second} {rest}"]):
        assert remove_duplicates(texts).kept == [0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("We do not sell 1,200 of these apples", "We don't sell 1200 of these apples"),
        ("A dog runs.", "The dog runs."),
        ("I think a dog ran over there", "We think the dog ran over there"),
        ("The answer is A.", "The answer is (A)"),
        ("OPTION C IS RIGHT", "Option C is right!"),
        ("Please meet us there at 5 p.m. sharp", "Please meet us there at 5 pm sharp"),
        ("Send me an e-mail about it tomorrow", "Send me an email about it tomorrow"),
        ("Bevo l'acqua e mangio il pane", "Bevo acqua, mangio il pane"),
        ("Tengo dos perros y un gato negro", "Tengo dos perros, un gato negro"),
    ],
)
def test_the_same_numbers_letters_and_negations_tell_nothing_apart(first: str, second: str) -> None:
    for texts in permutations([first, second]):
        assert remove_duplicates(texts, 0.4).kept == [0]


def test_punctuation_alone_tells_no_texts_apart() -> None:
    texts = ["A. Bird", "a bird", "A: bird!"]
    for order in permutations(texts):
        repeats = {1: Match(0, 1.0), 2: Match(0, 1.0)}
        assert remove_duplicates(order) == Unrepeated([0], repeats)


def test_a_chain_keeps_both_ends() -> None:
    texts = ["abcdefghij", "cdefghijkl", "efghijklmn"]
    assert [similarity(texts[0], text) for text in texts] == [1, 4 / 8, 2 / 10]
    assert remove_duplicates(texts, 0.5) == Unrepeated([0, 2], {1: Match(0, 0.5)})


def test_a_repeat_names_the_most_similar_text_kept_before_it() -> None:
    texts = ["abcdefghij", "efghijklmn", "ghijklmnab", "efghijklmno", "efghijklmn"]
    removed = remove_duplicates(texts, 0.4)
    assert removed.kept == [0, 1]
    assert removed.repeats == {2: Match(1, 4 / 8), 3: Match(1, 6 / 7), 4: Match(1, 1.0)}


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_duplicates_equal_brute_force(seed: int, threshold: float) -> None:
    texts = random_texts(seed)
    for order in (texts, texts[::-1]):
        assert remove_duplicates(order, threshold) == brute_removal(order, threshold)


@pytest.mark.parametrize("threshold", [0, -1, 1.01, float("nan")])
def test_threshold_is_checked(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        remove_duplicates(["a", "b"], threshold)


# ---- overlap ----


@pytest.mark.parametrize("seed", SEEDS)
def test_overlap_equals_brute_force(seed: int) -> None:
    texts, other = random_texts(seed, 50), random_texts(seed, 90)[40:]
    for ours, theirs in [
        (texts, other),
        ([text for text in texts if len(text.split()) > 40], other),
        (texts, [text for text in other if len(text.split()) > 40]),
    ]:
        expected = []
        for text in ours:
            best = Match(None, 0.0)
            for index, candidate in enumerate(theirs):
                similarity = brute_jaccard(text, candidate)
                if similarity > best.jaccard:
                    best = Match(index, similarity)
            expected.append(best)
        assert overlap(ours, theirs) == expected


def test_overlap_without_a_match() -> None:
    assert overlap(["abcdefg"], ["tuvwxyz"]) == [Match(None, 0.0)]
    assert overlap(["abcdefg"], []) == [Match(None, 0.0)]
    assert overlap([], ["abcdefg"]) == []
    assert overlap(["x", ""], ["abcdefg", "?"]) == [Match(None, 0.0), Match(1, 1.0)]


# ---- diversity ----


def distinct(texts: list[str]) -> tuple[float | None, ...]:
    found = diversity(texts)
    return found.distinct_1, found.distinct_2, found.distinct_3


def test_distinct_n() -> None:
    assert distinct(["The cat, the dog", "the cat"]) == (3 / 6, 3 / 4, 1)
    # no n-gram goes from one text into the next
    assert distinct(["the cat", "The dog!", "the cat"]) == (3 / 6, 2 / 3, None)
    assert distinct(["the", "..."]) == (1, None, None)
    assert distinct([]) == (None, None, None)


def test_diversity_of_all_pairs() -> None:
    texts = ["abcdefg", "bcdefgh", "Abcdefg!", "one two three"]
    found = diversity(texts)
    assert (found.n_texts, found.n_pairs) == (4, 6)
    assert found.mean_jaccard == pytest.approx((0.5 + 1 + 0 + 0.5 + 0 + 0) / 6)
    assert (found.distinct_1, found.distinct_2, found.distinct_3) == (5 / 6, 1, 1)
    assert found.mean_words == 6 / 4


def test_diversity_of_a_sample() -> None:
    texts = [f"{'same words here' if i % 2 else 'qwertyuiop'} {i}" for i in range(60)]
    everything = diversity(texts)
    assert everything.n_pairs == 1770
    sampled = diversity(texts, seed=1, max_pairs=900)
    assert sampled.n_pairs == 900
    assert sampled == diversity(texts, seed=1, max_pairs=900)
    assert sampled.mean_jaccard != diversity(texts, seed=2, max_pairs=900).mean_jaccard
    assert sampled.mean_jaccard == pytest.approx(everything.mean_jaccard, abs=0.03)
    # one of the three pairs is of equal texts: two draws never hold it twice, nor a text twice
    means = {
        diversity(["same", "same", "other"], seed=s, max_pairs=2).mean_jaccard for s in range(99)
    }
    assert means == {0.0, 0.5}
    with pytest.raises(ValueError, match="max_pairs=0"):
        diversity(texts, max_pairs=0)


def test_diversity_of_nothing() -> None:
    empty = diversity([])
    assert (empty.n_texts, empty.n_pairs) == (0, 0)
    assert empty.mean_jaccard is empty.mean_words is empty.distinct_1 is None
    assert diversity(["one"]).mean_jaccard is None
    assert diversity(["", ""]).mean_words == 0


# ---- one result in every process ----

PROBE = """
import json, sys
from utils.duplicates import *
from utils.text_stats import *
texts = json.load(sys.stdin)
print(json.dumps([
    remove_duplicates(texts, 0.3), overlap(texts[:30], texts[30:]),
    repr(diversity(texts, max_pairs=100)),
]))
"""


def test_string_hashes_change_nothing() -> None:
    texts = json.dumps(random_texts(5))
    printed = [
        subprocess.run(
            [sys.executable, "-c", PROBE],
            input=texts,
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "12345")
    ]
    assert len(set(printed)) == 1
    assert len(printed[0]) > 500
