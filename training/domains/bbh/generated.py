"""Items in BBH's format for the tasks that are procedural, made from a seed: for machines that have
neither the files nor a network. Wording and difficulty are ours, so accuracies are not BBH's."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

from training.domains.bbh.items import Item

NAMES = ("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivan", "Jade", "Kim", "Leo")
COLOURS = ("red", "blue", "green", "white", "black", "yellow", "pink", "orange", "purple")
THINGS = {
    "fruits": ("apple", "banana", "fig", "plum", "pear", "lemon", "mango", "melon"),
    "animals": ("cat", "dog", "goat", "duck", "rabbit", "frog", "pig", "horse"),
    "tools": ("hammer", "saw", "drill", "spanner", "file", "axe", "rake", "shovel"),
}
NUMBER_WORDS = ("zero", "one", "two")
BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">"}
ORDERED_ADJECTIVES = (
    ("lovely", "awful", "good", "strange", "nice"),
    ("big", "tiny", "large", "small", "huge"),
    ("old", "new", "ancient", "young"),
    ("round", "square", "flat", "long"),
    ("red", "blue", "green", "white", "black"),
    ("French", "Polish", "Chinese", "Brazilian"),
    ("wooden", "plastic", "silver", "woollen"),
)
NOUNS = ("chair", "lamp", "box", "shoe", "cup", "coat", "ship", "ball", "bag", "clock")
WORDS = (
    "amber", "basin", "cabin", "dairy", "eagle", "fable", "gable", "habit", "igloo", "jewel",
    "kayak", "label", "magic", "nerve", "ocean", "panel", "quilt", "radar", "salad", "table",
    "ultra", "valve", "wagon", "yacht", "zebra", "apron", "bench", "chalk", "depot", "ember",
    "flute", "globe", "honey", "ivory", "joker", "knife", "lemon", "mango", "noble", "olive",
)  # fmt: skip
TRADES = (
    "baker",
    "singer",
    "pilot",
    "painter",
    "nurse",
    "sailor",
    "lawyer",
    "farmer",
    "miner",
    "poet",
)
PLACES = ("library", "market", "museum", "gym", "park", "bakery", "cinema", "pool", "school")
DEEDS = ("reading in", "walking through", "waiting outside", "taking pictures of", "working at")

Family = Callable[[random.Random], tuple[str, str]]


def generate_items(name: str, size: int, seed: int) -> list[Item]:
    """`size` items of a family of FAMILIES, all different, the same for the same seed.

    Raises ValueError where a family has not so many.
    """
    rng = random.Random(f"{seed} {name}")
    items: dict[str, Item] = {}
    for _ in range(50 * size):
        given, target = FAMILIES[name](rng)
        items.setdefault(given, Item(given, target))
        if len(items) == size:
            return list(items.values())
    raise ValueError(f"{name}: only {len(items)} different items found, {size} wanted")


def _boolean_expressions(rng: random.Random) -> tuple[str, str]:
    def expression(depth: int) -> str:
        if depth == 0:
            return rng.choice(("True", "False"))
        form = rng.randrange(4)
        if form == 0:
            return f"not {expression(depth - 1)}"
        if form == 1:
            return f"( {expression(depth - 1)} )"
        operator = rng.choice(("and", "or"))
        return f"{expression(depth - 1)} {operator} {expression(depth - 1)}"

    # of random expressions more are true than false
    wanted = rng.random() < 0.5
    text = expression(3)
    while _truth(text.split()) != wanted:
        text = expression(3)
    return f"{text} is", str(wanted)


def _truth(tokens: list[str]) -> bool:
    """The value of an expression; `or` binds less than `and`, and `and` less than `not`."""
    rest = list(tokens)

    def either() -> bool:
        value = both()
        while rest and rest[0] == "or":
            rest.pop(0)
            right = both()
            value = value or right
        return value

    def both() -> bool:
        value = single()
        while rest and rest[0] == "and":
            rest.pop(0)
            right = single()
            value = value and right
        return value

    def single() -> bool:
        token = rest.pop(0)
        if token == "not":
            return not single()
        if token == "(":
            value = either()
            rest.pop(0)
            return value
        return token == "True"

    return either()


def _dyck_languages(rng: random.Random) -> tuple[str, str]:
    depth, opened, text = rng.randint(1, 3), [], []
    while True:
        if opened and (rng.random() < 0.4 or len(opened) > 4):
            text.append(BRACKETS[opened.pop()])
        else:
            opened.append(rng.choice(list(BRACKETS)))
            text.append(opened[-1])
        if len(text) >= 4 and len(opened) == depth:
            break
    closing = " ".join(BRACKETS[bracket] for bracket in reversed(opened))
    return f"Write the brackets that close this sequence: {' '.join(text)}", closing


def _formal_fallacies(rng: random.Random) -> tuple[str, str]:
    name, (a, b) = rng.choice(NAMES), rng.sample(TRADES, 2)
    valid = rng.random() < 0.5
    quantifier = rng.choice(("All", "No") if valid else ("All", "Some", "Most"))
    # with "All" the other way round is the fallacy
    given, shown = (a, b) if valid or quantifier != "All" else (b, a)
    negated = "not " if quantifier == "No" else ""
    text = (
        f"{quantifier} {a}s are {b}s. {name} is a {given}. "
        f"Therefore {name} is {negated}a {shown}. Is this argument valid or invalid?"
        "\nOptions:\n- valid\n- invalid"
    )
    return text, "valid" if valid else "invalid"


def _hyperbaton(rng: random.Random) -> tuple[str, str]:
    kinds = sorted(rng.sample(range(len(ORDERED_ADJECTIVES)), 2))
    right = [rng.choice(ORDERED_ADJECTIVES[kind]) for kind in kinds]
    wrong = right
    while wrong == right:
        wrong = rng.sample(right, len(right))
    noun = rng.choice(NOUNS)
    options = [" ".join([*right, noun]), " ".join([*wrong, noun])]
    answer = rng.randrange(2)
    if answer == 1:
        options.reverse()
    return _with_options("Which has its adjectives in the usual order?", options), _letter(answer)


def _navigate(rng: random.Random) -> tuple[str, str]:
    x = y = 0
    steps = []
    for _ in range(rng.randint(2, 4)):
        count, (word, dx, dy) = (
            rng.randint(1, 6),
            rng.choice((("forward", 0, 1), ("backward", 0, -1), ("left", -1, 0), ("right", 1, 0))),
        )
        steps.append((count, word))
        x, y = x + count * dx, y + count * dy
    if rng.random() < 0.5:
        # walk home, so that both answers are as frequent
        home = [
            (abs(y), "backward" if y > 0 else "forward"),
            (abs(x), "left" if x > 0 else "right"),
        ]
        steps += [(count, word) for count, word in home if count]
        x = y = 0
    told = " ".join(f"Take {n} step{'' if n == 1 else 's'} {word}." for n, word in steps)
    text = f"Does this walk end where it began? Always face ahead. {told}\nOptions:\n- Yes\n- No"
    return text, "Yes" if x == y == 0 else "No"


def _object_counting(rng: random.Random) -> tuple[str, str]:
    kind, other = rng.sample(list(THINGS), 2)
    things = rng.sample(THINGS[kind], rng.randint(2, 5))
    things += rng.sample(THINGS[other], rng.randint(1, 2))
    named = [(thing, 2 if rng.random() < 0.1 else 1) for thing in rng.sample(things, len(things))]
    total = sum(count for thing, count in named if thing in THINGS[kind])
    told = [f"{NUMBER_WORDS[n]} {thing}{'' if n == 1 else 's'}" for thing, n in named]
    text = f"I have {', '.join(told[:-1])}, and {told[-1]}. How many {kind} do I have?"
    return text, str(total)


def _temporal_sequences(rng: random.Random) -> tuple[str, str]:
    person, *witnesses = rng.sample(NAMES, 5)
    goal, *elsewhere = rng.sample(PLACES, 5)
    hours = sorted(rng.sample(range(6, 22), 6))
    spans = list(itertools.pairwise(hours))
    free = rng.randrange(len(spans))
    lines = [f"{person} got up at {_clock(hours[0])}."]
    seen = [span for i, span in enumerate(spans) if i != free]
    for witness, place, (start, stop) in zip(witnesses, elsewhere, seen, strict=True):
        deed = rng.choice(DEEDS)
        times = f"from {_clock(start)} to {_clock(stop)}"
        lines.append(f"{witness} saw {person} {deed} the {place} {times}.")
    lines.append(f"The {goal} closed at {_clock(hours[-1])}.")
    shown = [spans[free], *rng.sample(seen, 3)]
    options = [f"{_clock(start)} to {_clock(stop)}" for start, stop in shown]
    order = rng.sample(range(4), 4)
    told = "\n".join(lines)
    text = f"Today {person} went to the {goal}.\n{told}\nWhen could {person} have been there?"
    return _with_options(text, [options[i] for i in order]), _letter(order.index(0))


def _tracking_three(rng: random.Random) -> tuple[str, str]:
    people = sorted(rng.sample(NAMES, 3))
    balls = rng.sample(COLOURS, 3)
    holding = dict(zip(people, balls, strict=True))
    start = ", ".join(f"{person} has the {ball} ball" for person, ball in holding.items())
    swaps = []
    for _ in range(3):
        first, second = rng.sample(people, 2)
        holding[first], holding[second] = holding[second], holding[first]
        swaps.append(f"{first} and {second} swap balls.")
    who = rng.choice(people)
    text = f"At first {start}. {' '.join(swaps)} At the end {who} has the"
    return _with_options(text, [f"{ball} ball" for ball in balls]), _letter(
        balls.index(holding[who])
    )


def _web_of_lies(rng: random.Random) -> tuple[str, str]:
    people = rng.sample(NAMES, rng.randint(2, 4))
    honest = rng.random() < 0.5
    told = [f"{people[0]} {'tells the truth' if honest else 'lies'}."]
    for before, person in itertools.pairwise(people):
        claim = rng.random() < 0.5
        told.append(f"{person} says {before} {'tells the truth' if claim else 'lies'}.")
        honest = claim == honest
    return f"{' '.join(told)} Does {people[-1]} tell the truth?", "Yes" if honest else "No"


def _word_sorting(rng: random.Random) -> tuple[str, str]:
    letters = rng.sample(sorted({word[0] for word in WORDS}), rng.randint(2, 4))
    words = [rng.choice([word for word in WORDS if word[0] == letter]) for letter in letters]
    return f"Sort these words alphabetically: {' '.join(words)}", " ".join(sorted(words))


def _multistep_arithmetic(rng: random.Random) -> tuple[str, str]:
    a, b, c, d = (rng.randint(-9, 9) for _ in range(4))
    first, second = rng.choice("+-*"), rng.choice("+-*")
    results = {"+": lambda p, q: p + q, "-": lambda p, q: p - q, "*": lambda p, q: p * q}
    value = results[first](a, b) - results[second](c, d)
    return f"(({a} {first} {b}) - ({c} {second} {d})) =", str(value)


FAMILIES: dict[str, Family] = {
    "boolean_expressions": _boolean_expressions,
    "dyck_languages": _dyck_languages,
    "formal_fallacies": _formal_fallacies,
    "hyperbaton": _hyperbaton,
    "multistep_arithmetic_two": _multistep_arithmetic,
    "navigate": _navigate,
    "object_counting": _object_counting,
    "temporal_sequences": _temporal_sequences,
    "tracking_shuffled_objects_three_objects": _tracking_three,
    "web_of_lies": _web_of_lies,
    "word_sorting": _word_sorting,
}


def _with_options(text: str, options: list[str]) -> str:
    lines = [f"{_letter(i)} {option}" for i, option in enumerate(options)]
    return "\n".join([text, "Options:", *lines])


def _letter(index: int) -> str:
    return f"({chr(ord('A') + index)})"


def _clock(hour: int) -> str:
    return f"{hour}am" if hour < 12 else f"{hour - 12 or 12}pm"
