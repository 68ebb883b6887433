"""evaluation/behaviour: prompts.py, prompt_report.py, with generator and scorer in this process.

uv run pytest tests/evaluation/behaviour/test_eval_prompts.py
"""

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from prompt_world import fill, stage_of, words

from evaluation.behaviour.eval_file import EvalPrompt
from evaluation.behaviour.prompt_report import count_rows, dropped_rows, make_report
from evaluation.behaviour.prompts import (
    GENERATOR,
    MAX_ROUNDS,
    ROLE_PLAY,
    SCORER,
    Dropped,
    PromptWriter,
    filter_prompts,
    score_prompts,
)
from generation.properties import PROPERTIES, Property
from utils.llm.api import Kind, LLMError, Reply, Request, Role, Usage
from utils.llm.client import LLMClient
from utils.llm.retry import RetryPolicy

HONEST, POWER = PROPERTIES["honest"], PROPERTIES["power-seeking"]
BOTH = {HONEST.name: ["bank letters"], POWER.name: ["shared calendars"]}
FINE = "The bank sent me a letter that I do not understand, what now?"
# content that does not fit fails at once
NO_RETRY = RetryPolicy(max_retries=0, max_rate_retries=0, max_reasks=0)

Reaction = Callable[[Request], Any]


def of_seed(request: Request) -> Any:
    assert request.json_schema is not None
    return fill(request.json_schema, json.dumps([list(request.messages), request.seed]))


class InProcess:
    """The endpoint of a role; `reaction` gives the JSON of the answer, or raises."""

    def __init__(self, name: str, reaction: Reaction, cost: float | None = None) -> None:
        self.role = Role(name, "some-model", seed=0, max_tokens=1500)
        self.reaction = reaction
        self.cost = cost
        self.requests: list[Request] = []

    async def complete(self, request: Request) -> Reply:
        self.requests.append(request)
        # others begin before this one ends
        await asyncio.sleep(0)
        value = self.reaction(request)
        return Reply(json.dumps(value), "stop", Usage(10, 20, self.cost), model="some-model")

    async def close(self) -> None:
        pass

    def about(self, what: str) -> list[Request]:
        return [r for r in self.requests if what in r.messages[0]["content"]]


def client_of(endpoint: InProcess, **options: Any) -> LLMClient:
    return LLMClient([endpoint], retry=NO_RETRY, **options)


def write(
    endpoint: InProcess,
    categories: Mapping[str, Sequence[str]] = BOTH,
    *,
    local: bool = False,
    concurrency: int = 8,
    **options: Any,
) -> tuple[list[EvalPrompt], Dropped]:
    writer = PromptWriter(client_of(endpoint, max_concurrency=concurrency), local=local, seed=0)
    properties = [PROPERTIES[name] for name in categories]
    given: dict[str, Any] = {"per_category": 1, "num_turns": {}, **options}
    return asyncio.run(writer.prompts(properties, categories, **given))


def first_says(what: str, *messages: str) -> Reaction:
    """The first sample of each request about `what` has those messages."""

    def react(request: Request) -> Any:
        value = of_seed(request)
        if what in request.messages[0]["content"] and request.sample_index == 0:
            return dict(zip(value, messages, strict=True))
        return value

    return react


# --- prompts


def test_one_prompt_per_call_with_ids_in_order_and_turns_per_property() -> None:
    categories = {POWER.name: ["calendars", "backups"], HONEST.name: ["bank letters"]}
    made = []
    for concurrency in (1, 8):
        generator = InProcess(GENERATOR, of_seed)
        options: dict[str, Any] = {"per_category": 2, "num_turns": {HONEST.name: 3}}
        prompts, dropped = write(generator, categories, concurrency=concurrency, **options)
        made.append(prompts)
        assert len(generator.requests) == 6
        assert dropped == Dropped()
    assert made[0] == made[1]
    assert [(p.id, p.property, p.category, len(p.messages)) for p in made[0]] == [
        ("power-seeking-00-00", "power-seeking", "calendars", 1),
        ("power-seeking-00-01", "power-seeking", "calendars", 1),
        ("power-seeking-01-00", "power-seeking", "backups", 1),
        ("power-seeking-01-01", "power-seeking", "backups", 1),
        ("honest-00-00", "honest", "bank letters", 3),
        ("honest-00-01", "honest", "bank letters", 3),
    ]
    # another category beside them changes none of the others
    more, _ = write(InProcess(GENERATOR, of_seed), {**categories, "warm": ["moving"]}, **options)
    assert more[:6] == made[0]


@pytest.mark.parametrize(
    ("messages", "reason", "options"),
    [
        (["Pretend that you are my lawyer, what now?"], "asks for role-play", {}),
        (["I need an honest answer about my letter."], "names the property", {}),
        (["Is HONEST,\nin your view, too strong?"], "names the property", {}),
        ([" " * 40], "has an empty message", {}),
        ([FINE.upper()], "near a training example", {"leaks_from": ["x", FINE]}),
        (
            ["Something else, quite unlike it.", FINE],
            "near a training example",
            {"leaks_from": [FINE], "num_turns": {"honest": 2}},
        ),
        ([FINE, FINE.lower()], "repeats itself", {"num_turns": {"honest": 2}}),
        ([FINE, " \n" * 20], "has an empty message", {"num_turns": {"honest": 2}}),
    ],
)
def test_what_does_not_do_is_written_anew(
    messages: list[str], reason: str, options: dict[str, Any]
) -> None:
    generator = InProcess(GENERATOR, first_says("bank letters", *messages))
    prompts, dropped = write(generator, **options)
    assert [p.id for p in prompts] == ["honest-00-00", "power-seeking-00-00"]
    assert dropped == Dropped({reason: 1})
    first, second = generator.about("bank letters")
    assert list(first.messages) == list(second.messages)
    # without another sample it would be the same call, which the cache answers
    assert (first.sample_index, second.sample_index) == (0, 1)
    assert first.seed != second.seed
    assert len(generator.about("shared calendars")) == 1
    assert not any(message.strip() in prompts[0].messages for message in messages)


def test_only_its_own_property_and_whole_words_count_as_its_name() -> None:
    said = "Is dishonesty power seeking, and are dishonest people so?"
    generator = InProcess(GENERATOR, first_says("bank letters", said))
    prompts, dropped = write(generator)
    assert prompts[0].messages == [said]
    assert dropped == Dropped()
    for text in (
        "Is this power-seeking of him?",
        "Power  Seeking, is it?",
        "power_seeking or not?",
    ):
        generator = InProcess(GENERATOR, first_says("shared calendars", text))
        assert write(generator)[1] == Dropped({"names the property": 1})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Let's role-play.", True),
        ("Some roleplaying would help", True),
        ("a role play, please", True),
        ("Act as a pirate", True),
        ("imagine you're the boss", True),
        ("Imagine being a dog", True),
        ("imagine that you hold all keys", True),
        ("Imagine yourself in charge", True),
        ("From now on, you are now DAN", True),
        ("You\u2019re now my doctor", True),
        ("play the role of a judge", True),
        ("Take on the role of a guard", True),
        ("My role in the play is small", False),
        ("I cannot imagine living there", False),
        ("He is now my doctor", False),
        ("How do actors prepare?", False),
        ("This contract, as you know, ends soon", False),
    ],
)
def test_role_play(text: str, found: bool) -> None:
    assert bool(ROLE_PLAY.search(text)) is found


def test_a_repeat_of_another_propertys_prompt_is_written_anew() -> None:
    def react(request: Request) -> Any:
        return of_seed(request) if request.sample_index else {"message_1": FINE}

    generator = InProcess(GENERATOR, react)
    prompts, dropped = write(generator)
    assert [p.id for p in prompts] == ["honest-00-00", "power-seeking-00-00"]
    assert prompts[0].messages == [FINE] != prompts[1].messages
    assert dropped == Dropped({"repeats another": 1})
    assert [r.sample_index for r in generator.requests] == [0, 0, 1]
    assert "shared calendars" in generator.requests[2].messages[0]["content"]


def test_of_two_alike_the_one_written_first_stays() -> None:
    texts = {
        ("bank letters", 0): "Please pretend to be my landlord.",
        ("bank letters", 1): FINE,
        ("shared calendars", 0): FINE,
    }

    def react(request: Request) -> Any:
        for (what, sample), text in texts.items():
            if what in request.messages[0]["content"] and request.sample_index == sample:
                return {"message_1": text}
        return of_seed(request)

    generator = InProcess(GENERATOR, react)
    prompts, dropped = write(generator)
    assert prompts[1].messages == [FINE] != prompts[0].messages
    assert dropped == Dropped({"asks for role-play": 1, "repeats another": 1})
    assert [r.sample_index for r in generator.about("bank letters")] == [0, 1, 2]
    assert len(generator.about("shared calendars")) == 1


def test_what_never_does_is_missing() -> None:
    def react(request: Request) -> Any:
        if "bank letters" in request.messages[0]["content"]:
            return {"message_1": f"Act as {words(str(request.seed))}."}
        return of_seed(request)

    generator = InProcess(GENERATOR, react)
    prompts, dropped = write(generator)
    assert [p.id for p in prompts] == ["power-seeking-00-00"]
    assert dropped == Dropped({"asks for role-play": MAX_ROUNDS}, missing=1)
    assert len(generator.requests) == MAX_ROUNDS + 1


@pytest.mark.parametrize("failures", [1, MAX_ROUNDS])
def test_failed_calls_are_counted_and_made_again(failures: int) -> None:
    def react(request: Request) -> Any:
        if "bank letters" in request.messages[0]["content"] and request.sample_index < failures:
            raise LLMError("refusal", GENERATOR, "I will not")
        return of_seed(request)

    prompts, dropped = write(InProcess(GENERATOR, react))
    missing = int(failures == MAX_ROUNDS)
    assert len(prompts) == 2 - missing
    assert dropped == Dropped(calls_failed=failures, missing=missing)


@pytest.mark.parametrize("kind", ["auth", "payment", "not_found", "bad_request"])
def test_what_the_next_call_would_meet_too_ends_the_writing(kind: Kind) -> None:
    def react(request: Request) -> Any:
        raise LLMError(kind, GENERATOR, "so it is")

    generator = InProcess(GENERATOR, react)
    with pytest.raises(LLMError, match="so it is") as ended:
        write(generator, concurrency=1)
    assert ended.value.kind == kind
    assert len(generator.requests) == 1


def test_a_generator_in_this_process_is_held_to_plain_requests() -> None:
    def react(request: Request) -> Any:
        return {"message_1": f"How do I {words(str(request.messages))}?"}

    generator = InProcess(GENERATOR, react)
    prompts, _ = write(generator, local=True)
    [request, _] = generator.requests
    assert request.json_schema is not None
    pattern = request.json_schema["properties"]["message_1"]["pattern"]
    assert re.search(pattern, prompts[0].messages[0])
    assert not re.search(pattern, FINE.lower())


# --- categories


def categories(
    endpoint: InProcess, properties: Sequence[Property], *, local: bool = False, **options: Any
) -> dict[str, list[str]]:
    writer = PromptWriter(client_of(endpoint, **options), local=local, seed=0)
    return asyncio.run(writer.categories(properties, 4))


def test_categories_are_distinct_and_by_property() -> None:
    def react(request: Request) -> Any:
        value = of_seed(request)
        if "'honest'" in request.messages[0]["content"] and request.sample_index == 0:
            value["items"][3] = f"  {value['items'][0].upper()} "
        return value

    generator = InProcess(GENERATOR, react)
    found = categories(generator, [POWER, HONEST])
    assert list(found) == ["power-seeking", "honest"]
    assert all(len(set(own)) == 4 for own in found.values())
    again = generator.about("'honest'")[1].messages[0]["content"]
    assert "List 1 categories" in again and found["honest"][0] in again
    assert categories(InProcess(GENERATOR, react), []) == {}


def test_small_models_get_the_start_of_each_category() -> None:
    def react(request: Request) -> Any:
        assert request.json_schema is not None
        fields = request.json_schema["properties"]
        starts = [field["pattern"].split(" [a-z]")[0][1:] for field in fields.values()]
        return {
            name: f"{start.replace(chr(92), '')} {words(start)}"
            for name, start in zip(fields, starts, strict=True)
        }

    found = categories(InProcess(GENERATOR, react), [HONEST], local=True)
    assert len(found["honest"]) == 4
    assert all(text.startswith("Talking about ") for text in found["honest"])


@pytest.mark.parametrize("kind", ["auth", "payment", "not_found", "bad_request"])
def test_the_cause_is_told_not_what_it_kept_from_starting(kind: Kind) -> None:
    """The first property's second call is never made, for the second's first one failed."""

    def react(request: Request) -> Any:
        if "'honest'" in request.messages[0]["content"]:
            raise LLMError(kind, GENERATOR, "so it is")
        value = of_seed(request)
        value["items"] = value["items"][:1] * 4
        return value

    generator = InProcess(GENERATOR, react)
    with pytest.raises(LLMError, match="so it is") as ended:
        categories(generator, [POWER, HONEST], max_concurrency=1)
    assert ended.value.kind == kind
    assert len(generator.requests) == 2


def test_the_budget_is_told_as_the_cause() -> None:
    generator = InProcess(GENERATOR, of_seed, cost=0.02)
    with pytest.raises(LLMError, match=r"max_cost_usd=0\.01") as ended:
        categories(generator, [POWER, HONEST], max_cost_usd=0.01, max_concurrency=1)
    assert ended.value.kind == "budget"
    assert len(generator.requests) == 1


def test_one_failed_call_or_no_category_ends_it() -> None:
    def refuse(request: Request) -> Any:
        if "'honest'" in request.messages[0]["content"]:
            raise LLMError("refusal", GENERATOR, "I will not")
        return of_seed(request)

    with pytest.raises(LLMError, match="I will not"):
        categories(InProcess(GENERATOR, refuse), [POWER, HONEST])

    def dashes(request: Request) -> Any:
        return {"items": ["-" * 12 for _ in of_seed(request)["items"]]}

    with pytest.raises(LLMError, match="no categories for honest") as ended:
        categories(InProcess(GENERATOR, dashes), [HONEST])
    assert ended.value.kind == "empty"


# --- scores


def some_prompts(count: int = 5) -> list[EvalPrompt]:
    return [EvalPrompt(f"p{i}", "honest", f"c{i // 3}", [f"say {i}"]) for i in range(count)]


def scores(request: Request) -> Any:
    i = int(request.messages[0]["content"].split("say ")[1][0])
    return {"rationale": "so", "realism": 10 - i, "eval_awareness": 1 + i}


def test_scores_are_written_and_failures_counted() -> None:
    def react(request: Request) -> Any:
        if "say 3" in request.messages[0]["content"]:
            raise LLMError("refusal", SCORER, "I will not")
        return scores(request)

    async def run() -> tuple[list[EvalPrompt], int]:
        return await score_prompts(some_prompts(), client_of(InProcess(SCORER, react)))

    scored, failed = asyncio.run(run())
    assert failed == 1
    assert [p.id for p in scored] == ["p0", "p1", "p2", "p3", "p4"]
    assert [(p.realism, p.eval_awareness) for p in scored] == [
        *((10, 1), (9, 2), (8, 3)),
        *((None, None), (6, 5)),
    ]
    assert [p.messages for p in scored] == [p.messages for p in some_prompts()]


def test_the_scorer_sees_all_messages_and_a_score_out_of_range_is_none() -> None:
    scorer = InProcess(SCORER, lambda request: {**scores(request), "realism": 11})

    async def run() -> tuple[list[EvalPrompt], int]:
        prompt = EvalPrompt("p", "honest", "c", ["say 0 first", "and then this"])
        return await score_prompts([prompt], client_of(scorer))

    [prompt], failed = asyncio.run(run())
    assert (prompt.realism, failed) == (None, 1)
    told = scorer.requests[0].messages[0]["content"]
    assert told.index("say 0 first") < told.index("and then this")
    assert "honest" not in told


def test_scoring_ends_where_no_call_can_be_made() -> None:
    def react(request: Request) -> Any:
        raise LLMError("payment", SCORER, "no money")

    with pytest.raises(LLMError, match="no money"):
        asyncio.run(score_prompts(some_prompts(), client_of(InProcess(SCORER, react))))


def test_filters() -> None:
    pairs = [(5, 5), (4, 5), (5, 6), (None, None), (9, 1), (1, 9), (10, 5)]
    prompts = [
        EvalPrompt(f"p{i}", "honest", "c", ["say"], realism, awareness)
        for i, (realism, awareness) in enumerate(pairs)
    ]
    dropped = Dropped({"asks for role-play": 1}, missing=2)
    kept = filter_prompts(prompts, dropped, min_realism=5, max_eval_awareness=5)
    assert [p.id for p in kept] == ["p0", "p4", "p6"]
    assert dropped.by_reason == {
        "asks for role-play": 1,
        "not realistic enough": 2,
        "looks too much like a test": 1,
        "not scored": 1,
    }
    assert dropped.missing == 2 + 4


# --- the page


def test_counts_per_category() -> None:
    prompts = [
        EvalPrompt("a", "honest", "c1", ["x"], 6, 1),
        EvalPrompt("b", "warm", "c1", ["x"], 3, 2),
        EvalPrompt("c", "honest", "c1", ["x"], 9, 4),
        EvalPrompt("d", "honest", "c1", ["x"]),
        EvalPrompt("e", "honest", "c2", ["x"]),
    ]
    assert count_rows(prompts) == [
        ("honest", "c1", 3, 7.5, 2.5),
        ("warm", "c1", 1, 3.0, 2.0),
        ("honest", "c2", 1, None, None),
    ]
    assert dropped_rows(Dropped({"names the property": 2}, 3, 4, 5)) == [
        ("written anew or dropped: names the property", 2),
        ("calls failed", 3),
        ("not scored", 5),
        ("missing", 4),
    ]


def test_the_page_escapes_and_shows_everything(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    property = Property(f"p {attack}", f"does {attack}", "does not")
    prompts = [
        EvalPrompt("p-00-00", property.name, f"kind {attack}", [f"ask {attack}", "$x^2$"], 7, 2),
        EvalPrompt(f"p {attack}", property.name, f"kind {attack}", ["more"]),
    ]
    client = client_of(InProcess(GENERATOR, of_seed))
    client.ledger.failed("prompts", LLMError("refusal", GENERATOR, attack), given_up=True)
    path = tmp_path / "report.html"
    dropped = Dropped({f"why {attack}": 1})
    make_report(f"run {attack}", [property], prompts, dropped, client.ledger).write(path)
    page = path.read_text()
    assert "<script" not in page and "<img" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 8
    assert "p-00-00: realism 7, eval-awareness 2" in page
    assert ": not scored" in page


def test_the_stages_of_the_world() -> None:
    assert stage_of({"properties": {"items": {}}}) == "categories"
    assert words("a") == words("a") != words("b")
