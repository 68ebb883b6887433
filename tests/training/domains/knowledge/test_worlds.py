"""Made worlds: what keeps an answer from being right by chance, by its title or by its wording."""

import collections
import itertools
import re
import subprocess
import sys

import pytest

from tests.places import ROOT
from training.domains.knowledge import vocabulary
from training.domains.knowledge.kinds.registry import KINDS
from training.domains.knowledge.made_edits import TEMPLATE_FORMS, shots, template_edit
from training.domains.knowledge.made_questions import NUM_CHOICES
from training.domains.knowledge.names import CONSONANTS, VOWELS, world_names
from training.domains.knowledge.things import filled
from training.domains.knowledge.worlds import MAX_OF_KIND, PARTS, World

ATTRIBUTES = [(kind, attribute) for kind in KINDS for attribute in kind.attributes]
TABLES = {name: v for name, v in vars(vocabulary).items() if isinstance(v, tuple)}
NUMBER = re.compile(r"\d+")


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def num_edits(a: str, b: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def evaluation_wordings():
    for kind in KINDS:
        yield from (*kind.later, *kind.between, *kind.more)
        for attribute in kind.attributes:
            yield from (*attribute.evaluation, *attribute.reverse_evaluation)


def training_wordings():
    for _, attribute in ATTRIBUTES:
        yield from (*attribute.sentences, *attribute.training, *attribute.reverse_training)


# --------------------------------------------------------------------------- tables


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_enough_values_and_none_within_another(name):
    values = TABLES[name]
    assert len(values) >= 24
    assert len(set(values)) == len(values)
    for a, b in itertools.permutations(values, 2):
        assert not set(words(a)) <= set(words(b)), f"{a!r} would be right where {b!r} is"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_has_eight_attributes_of_values_of_their_own(kind):
    assert len(kind.attributes) == len({a.name for a in kind.attributes}) == 8
    values = [value for attribute in kind.attributes for value in attribute.values]
    assert len(values) == len(set(values))
    for attribute in kind.words:
        assert len(attribute.reverse_training) == len(attribute.reverse_evaluation) == 2
        assert attribute.clause
    (early, late), (many, few) = kind.years, kind.numbers
    assert max(map(int, early.values)) < min(map(int, late.values))
    assert max(map(int, few.values)) < min(map(int, many.values))


def test_every_wording_is_there_once_and_has_the_fields_it_needs():
    all_wordings = [*evaluation_wordings(), *training_wordings()]
    by_kind = collections.Counter(
        (kind.name, wording)
        for kind, attribute in ATTRIBUTES
        for wording in (
            *attribute.sentences,
            *attribute.training,
            *attribute.evaluation,
            *attribute.reverse_training,
            *attribute.reverse_evaluation,
        )
    )
    assert max(by_kind.values()) == 1
    assert not set(evaluation_wordings()) & set(training_wordings())
    for _, attribute in ATTRIBUTES:
        for sentence in attribute.sentences:
            assert (sentence.count("{e}"), sentence.count("{v}")) == (1, 1), sentence
            assert sentence.endswith("."), sentence
        for question in (*attribute.training, *attribute.evaluation):
            assert (question.count("{e}"), question.count("{v}")) == (1, 0), question
        for question in (*attribute.reverse_training, *attribute.reverse_evaluation):
            assert (question.count("{e}"), question.count("{v}")) == (0, 1), question
    for kind in KINDS:
        assert all(wording.count("{k}") == 1 for wording in kind.later)
        assert all("{e}" in wording for wording in (*kind.later, *kind.between, *kind.more))
    assert {re.sub(r"\{[evk]\}", "", wording).count("{") for wording in all_wordings} == {0}
    questions = set(all_wordings) - {s for _, a in ATTRIBUTES for s in a.sentences}
    assert all(question.endswith("?") for question in questions)


# --------------------------------------------------------------------------- names


@pytest.mark.parametrize("seed", [0, 1, 288, 289, 12345])
def test_names_of_a_world_are_three_edits_apart(seed):
    names = world_names(seed)
    assert len(names) > len(PARTS) * len(KINDS) * MAX_OF_KIND
    assert len({len(name) for name in names}) == 1
    # any two differ in three letters: they stay apart when two are left out
    for i, j in itertools.combinations(range(len(names[0])), 2):
        rest = {name[:i] + name[i + 1 : j] + name[j + 1 :] for name in names}
        assert len(rest) == len(names)
    for a, b in itertools.combinations(names[:150], 2):
        assert num_edits(a.lower(), b.lower()) >= 3, (a, b)


def test_no_name_is_in_two_worlds():
    # on both sides of 289 worlds, and of 289 * 85, from where names have another syllable more
    seeds = [*range(12), *range(285, 295), 578, 24_564, 24_565, 24_853, 24_854, 10**9]
    counts = collections.Counter(name for seed in seeds for name in world_names(seed))
    assert max(counts.values()) == 1


# words, also of other languages, and names, that have the shape of a made name
@pytest.mark.parametrize("word", ["develop", "politik", "dominik", "katalog"])
def test_names_are_no_words(word):
    numbers = [(CONSONANTS if i % 2 == 0 else VOWELS).index(c) for i, c in enumerate(word)]
    total, weighted = sum(numbers) % 17, sum(i * x for i, x in enumerate(numbers)) % 17
    names = world_names(17 * total + weighted)
    # the world in which it would be
    assert any(num_edits(word, name.lower()) == 3 for name in names)
    assert word.capitalize() not in names


def test_names_have_a_shape_that_words_do_not_have():
    assert all(re.fullmatch("([^aeiou][aeiou]){3}[bfgkp]", n.lower()) for n in world_names(7))
    values = {word for table in TABLES.values() for value in table for word in words(value)}
    assert not [word for word in values if re.fullmatch("([^aeiou][aeiou]){3}[bfgkp]", word)]


def test_a_world_with_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match=r"seed=-1: .* 0 or more"):
        World(-1).passages("train", 1)


# --------------------------------------------------------------------------- things and passages


def test_splits_share_no_thing_and_values_are_drawn_without_replacement():
    world = World(5)
    made = {part: world.things(part, 144) for part in PARTS}
    names = [thing.name for things in made.values() for thing in things]
    assert len(set(names)) == len(names) == 3 * 144
    for things in made.values():
        for kind in KINDS:
            of_kind = [thing for thing in things if thing.kind is kind]
            assert len(of_kind) == 24
            for attribute in kind.attributes:
                assert len({thing.value(attribute) for thing in of_kind}) == 24


def test_the_first_passages_do_not_depend_on_how_many_there_are():
    assert World(1).passages("test", 12)[:5] == World(1).passages("test", 5)
    assert World(1).passages("test", 5) != World(2).passages("test", 5)
    assert World(1).passages("test", 5) != World(1).passages("train", 5)


def test_a_world_can_be_of_one_kind():
    village = KINDS[0]
    assert {thing.kind.name for thing in World(0, (village,)).things("train", 9)} == {"village"}


def test_more_passages_than_a_world_has_are_refused():
    World(0).passages("train", MAX_OF_KIND * len(KINDS))
    with pytest.raises(ValueError, match=r"577 train passages .* has 576 of each split"):
        World(0).passages("train", MAX_OF_KIND * len(KINDS) + 1)


def test_passages_have_60_to_90_words_whatever_is_drawn():
    for kind in KINDS:
        called = [f"{kind.article}Xxxxxxx", *([kind.again] if kind.again else [])]
        fewest = most = len(kind.opening.replace("{e}", called[0]).split())
        for attribute in kind.attributes:
            lengths = [
                len(sentence.replace("{e}", name).replace("{v}", value).split())
                for sentence in attribute.sentences
                for name in called
                for value in attribute.values
            ]
            fewest, most = fewest + min(lengths), most + max(lengths)
        assert 60 <= fewest <= most <= 90, kind.name


def test_a_passage_states_every_fact_once_and_names_its_thing():
    world = World(2)
    for thing, passage in zip(world.things("train", 60), world.passages("train", 60), strict=True):
        assert passage.id == passage.cluster == thing.id
        for value in thing.values.values():
            assert len(re.findall(rf"\b{re.escape(value)}\b", passage.context)) == 1, value
        assert thing.name in passage.context
        # "a owl", "an heron"
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", passage.context), passage.context


def test_nothing_depends_on_the_hash_seed():
    code = (
        "from training.domains.knowledge.sources import open_source\n"
        "source = open_source('made', num_train=6, num_test=2)\n"
        "made = source.passages('train')\n"
        "print(made, [source.template_edit(p, 'qa', 1) for p in made], source.shots)"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert printed.pop().count(b"Question(") == 6 * 16


# --------------------------------------------------------------------------- questions


def test_each_passage_has_its_sixteen_questions():
    for passage in World(3).passages("train", 30):
        kinds = collections.Counter(question.kind for question in passage.questions)
        assert kinds == {"direct": 8, "reverse": 4, "derived": 4}
        assert len({question.id for question in passage.questions}) == 16


def test_choices_hold_the_gold_answer_once_and_nothing_else_that_is_right():
    # so many that values recur
    passages = World(4).passages("test", 288)
    questions = [question for passage in passages for question in passage.questions]
    assert any(question.aliases for question in questions)
    for question in questions:
        assert len(question.choices) == len(set(question.choices)) == NUM_CHOICES
        assert question.choices.count(question.answer) == 1
        assert not set(question.aliases) & {*question.choices, question.answer}
    places = collections.Counter(q.choices.index(q.answer) for q in questions)
    # 1152 each, with a standard deviation of 29
    assert all(abs(places[i] - len(questions) / 4) < 120 for i in range(NUM_CHOICES))


def test_no_question_nor_its_title_tells_the_answer():
    for passage in World(5).passages("test", 60):
        for question in passage.questions:
            for answer in (question.answer, *question.aliases):
                shown = words(f"{passage.title} {question.text}")
                assert not set(words(answer)) <= set(shown), question


def test_derived_and_reverse_answers_follow_from_the_table():
    """Computed again from facts found in the questions and the table, by other means."""
    world = World(6)
    things, passages = world.things("train", 300), world.passages("train", 300)
    for thing, passage in zip(things, passages, strict=True):
        by_id = {q.id.removeprefix(f"{thing.id}/"): q for q in passage.questions}
        numbers = [int(value) for value in thing.values.values() if NUMBER.fullmatch(value)]
        many, few, founded, later = sorted(numbers[2:])[::-1] + sorted(numbers[:2])
        turned = int(NUMBER.findall(by_id["derived/later"].text)[0])
        assert by_id["derived/later"].answer == str(founded + turned)
        assert by_id["derived/between"].answer == str(later - founded)
        assert by_id["derived/more"].answer == str(many - few)
        of_kind = [other for other in things if other.kind is thing.kind]

        def having(text, of_kind=of_kind, thing=thing):
            """The things with the value that is in the text, and the attribute."""
            found = [
                attribute
                for attribute in thing.kind.words
                if re.search(rf"\b{re.escape(thing.value(attribute))}\b", text)
            ]
            assert len(found) == 1, text
            return [t for t in of_kind if t.value(found[0]) == thing.value(found[0])]

        for question in passage.questions:
            right = {question.answer, *question.aliases}
            if question.kind == "reverse":
                assert right == {other.name for other in having(question.text)}
                assert question.answer == thing.name
            if question.id.endswith("/hops"):
                asked = next(a for a in thing.kind.words if question.answer == thing.values[a.name])
                assert right == {other.value(asked) for other in having(question.text)}
                assert thing.name not in question.text


def test_questions_use_evaluation_wordings_alone():
    patterns = [
        re.compile(re.sub(r"\\\{[evk]\\\}", ".+", re.escape(wording)), re.IGNORECASE)
        for wording in evaluation_wordings()
    ]
    for passage in World(7).passages("test", 12):
        for question in passage.questions:
            assert any(pattern.fullmatch(question.text) for pattern in patterns), question.text


def test_no_training_text_has_an_evaluation_wording():
    world = World(8)
    things = world.things("train", 24)
    texts = [passage.context for passage in world.passages("train", 24)]
    for thing in things:
        texts += [template_edit(thing, form, seed) for form in TEMPLATE_FORMS for seed in range(3)]
        texts += [shot.question for shot in shots(thing)]
    text = "\n".join(texts).lower()
    for wording in evaluation_wordings():
        pieces = [piece.strip(" ?").lower() for piece in re.split(r"\{[evk]\}", wording)]
        # shorter ones are "of which instrument is"
        longer = [piece for piece in pieces if len(piece.split()) >= 5]
        assert not any(piece in text for piece in longer), wording
        for thing in things:
            for value in thing.values.values():
                assert filled(wording, thing.called, value).lower() not in text
