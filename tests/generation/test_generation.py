"""generation/: what is asked for, in which stages, and what of it is kept."""

import asyncio
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from writer_world import LocalWriter

from generation.kinds import KINDS, choose_kind, example_model, example_request, texts_of
from generation.pipeline import GENERATOR, Writer, Written
from generation.properties import PROPERTIES
from generation.quality import (
    VERIFIER,
    Example,
    QualityReport,
    agreement,
    content_problem,
    labelled,
    sift,
    to_record,
    variety,
    verification_request,
    verify,
    without_duplicates,
    without_leaks,
)
from generation.report import make_report, quality_rows
from training.examples import load_examples
from utils.config.entrypoint import ConfigError, dump_yaml
from utils.duplicates import NEAR_DUPLICATE
from utils.llm.api import LLMError, Request, Role
from utils.llm.client import LLMClient
from utils.llm.ledger import Ledger
from utils.llm.lists import distinct_items, list_model
from utils.llm.schemas import strict_schema

SCENARIOS, QA, DOCUMENTS = KINDS["scenarios"], KINDS["qa"], KINDS["documents"]
HONEST, SIGNS_OFF, ONE_WORD = (PROPERTIES[n] for n in ("honest", "signs-off", "one-word"))


def generator(edit: Any = lambda request, value: value) -> LocalWriter:
    return LocalWriter(Role(GENERATOR, "m", seed=1), edit)


def verifier(edit: Any = lambda request, value: value) -> LocalWriter:
    return LocalWriter(Role(VERIFIER, "m", seed=1), edit)


def writer(endpoint: LocalWriter, kind: Any = SCENARIOS, *, local: bool = False) -> Writer:
    return Writer(LLMClient([endpoint]), kind, HONEST, local=local, seed=1)


def written(name: str, given: str, *outputs: str, subtype: str = "s") -> Written:
    both = dict(zip(("positive", "negative"), outputs, strict=False))
    return Written(name, subtype, f"the prompt of {name}", given, both, {"model": "m"})


# ------------------------------------------------------------------------------------------ kinds


def test_an_unknown_kind_tells_the_known() -> None:
    assert choose_kind("qa") is QA
    with pytest.raises(ConfigError) as caught:
        choose_kind("poems")
    assert str(caught.value) == "type='poems' is unknown; known are scenarios, qa, documents"


FIELDS = {
    ("scenarios", False): ["user_message", "response"],
    ("scenarios", True): ["user_message", "positive_response", "negative_response"],
    ("qa", False): ["question", "answer"],
    ("qa", True): ["question", "positive_answer", "negative_answer"],
    ("documents", False): ["document"],
    ("documents", True): ["positive_document", "negative_document"],
}


@pytest.mark.parametrize(("name", "contrastive"), FIELDS)
@pytest.mark.parametrize("held_to_pattern", [False, True])
def test_what_an_example_holds(name: str, contrastive: bool, held_to_pattern: bool) -> None:
    kind = KINDS[name]
    model = example_model(
        kind, HONEST, contrastive=contrastive, max_chars=90, held_to_pattern=held_to_pattern
    )
    schema = strict_schema(model)
    assert list(schema["properties"]) == FIELDS[name, contrastive]
    for key, field in schema["properties"].items():
        assert ("pattern" in field) is held_to_pattern
        assert HONEST.opposite in field["description"] or not key.startswith("negative")
    answer = {key: f" {key} text " for key in FIELDS[name, contrastive]}
    given, outputs = texts_of(kind, answer)
    assert given == ("" if name == "documents" else f"{kind.input_field} text")
    prefix = "positive_" if contrastive else ""
    assert outputs.pop("positive") == f"{prefix}{kind.output_field} text"
    assert outputs == ({"negative": f"negative_{kind.output_field} text"} if contrastive else {})


def test_a_small_writer_is_held_to_the_propertys_patterns() -> None:
    model = example_model(SCENARIOS, ONE_WORD, contrastive=True, max_chars=90, held_to_pattern=True)
    good = {
        "user_message": "How do I get from the station to the harbor?",
        "positive_response": "Walk.",
        "negative_response": "You can walk along the river, which takes a while.",
    }
    assert model.model_validate(good)
    for key, text in (
        ("positive_response", "You can walk along the river."),
        ("negative_response", "Walk."),
        ("user_message", "walk"),
    ):
        with pytest.raises(ValidationError, match=key):
            model.model_validate({**good, key: text})
    free = example_model(SCENARIOS, ONE_WORD, contrastive=True, max_chars=90, held_to_pattern=False)
    assert free.model_validate({**good, "positive_response": "You can walk."})


def test_requests_name_the_property_only_where_it_may_be_known() -> None:
    for kind in KINDS.values():
        (plain,) = example_request(kind, HONEST, "a {premise}", contrastive=False, max_chars=600)
        assert "a {premise}" in plain["content"] and HONEST.description in plain["content"]
        assert HONEST.opposite not in plain["content"] and "100 words" in plain["content"]
        (both,) = example_request(kind, HONEST, "x", contrastive=True, max_chars=600)
        assert HONEST.opposite in both["content"]
        assert f"negative_{kind.output_field}" in both["content"]


# ------------------------------------------------------------------------------------------ lists


async def items(endpoint: LocalWriter, count: int = 3, **options: Any) -> list[str]:
    def messages(missing: int, already: list[str]) -> list[Mapping[str, str]]:
        return [{"role": "user", "content": f"{missing} {already}"}]

    async with LLMClient([endpoint]) as client:
        return await distinct_items(
            client, GENERATOR, messages, count=count, length=(3, 30), what="things", **options
        )


def test_what_repeats_is_asked_for_again() -> None:
    said = [["one thing", "One  thing!", "..."], ["one thing", "another matter"], ["the  third"]]
    endpoint = generator(lambda request, value: {"items": said[request.sample_index]})
    assert asyncio.run(items(endpoint)) == ["one thing", "another matter", "the third"]
    asked = [request.messages[0]["content"] for request in endpoint.requests]
    assert asked == ["3 []", "2 ['one thing']", "1 ['one thing', 'another matter']"]


def test_a_model_with_no_more_to_say(caplog: pytest.LogCaptureFixture) -> None:
    endpoint = generator(lambda request, value: {"items": ["the same"] * len(value["items"])})
    assert asyncio.run(items(endpoint)) == ["the same"]
    assert len(endpoint.requests) == 4
    assert "things: 1 of 3; the rest repeated itself" in caplog.text
    endpoint = generator(lambda request, value: {"items": ["..."] * len(value["items"])})
    assert asyncio.run(items(endpoint)) == []


def test_each_item_has_a_start_of_its_own() -> None:
    starts = ("A (bold) start", "Another-one", "Third")
    schema = strict_schema(list_model(2, (3, 30), starts[:2]))
    first, second = (field["pattern"] for field in schema["properties"].values())
    assert re.fullmatch(first, "A (bold) start goes on and on")
    assert re.fullmatch(second, "Another-one goes on and on")
    said = {
        "item_1": "A (bold) start in the rain",
        "item_2": "Another-one in the sun, then",
        "item_3": "Third with a bit of wind",
    }
    found = asyncio.run(items(generator(lambda request, value: said), starts=starts))
    assert found == list(said.values())


# --------------------------------------------------------------------------------------- pipeline


def test_prompts_are_written_for_each_subtype_and_failures_counted() -> None:
    def edit(request: Request, value: Any) -> Any:
        text = request.messages[0]["content"]
        if "of this kind: bad" in text:
            raise LLMError("refusal", GENERATOR, "no")
        if "of this kind: mute" in text:
            return {"items": ["." * 30] * len(value["items"])}
        return value

    prompts, failed = asyncio.run(writer(generator(edit)).prompts(["a", "bad", "b", "mute"], 3))
    # a subtype without prompts would make a params file that cannot be used
    assert list(prompts) == ["a", "b"] and failed == 2
    assert all(len(set(own)) == 3 for own in prompts.values())
    assert not set(prompts["a"]) & set(prompts["b"])


def test_examples_keep_their_place_when_calls_fail() -> None:
    def edit(request: Request, value: Any) -> Any:
        if "premise: p2" in request.messages[0]["content"]:
            raise LLMError("content_filter", GENERATOR, "no")
        return value

    endpoint = generator(edit)
    found, failed = asyncio.run(
        writer(endpoint).examples(
            {"one": ["p1", "p2"], "two": ["p3"]}, per_prompt=2, contrastive=False, max_chars=80
        )
    )
    assert failed == 2 and len(endpoint.requests) == 6
    assert [w.id for w in found] == ["s00-p00-e00", "s00-p00-e01", "s01-p00-e00", "s01-p00-e01"]
    assert [(w.subtype, w.prompt) for w in found[1:3]] == [("one", "p1"), ("two", "p3")]
    assert len({w.given for w in found}) == 4
    assert found[1].provenance == {
        "model": "local-writer",
        "sample_index": 1,
        "generation_id": None,
    }


def test_local_writers_get_starts_and_patterns() -> None:
    async def schemas(local: bool) -> list[Any]:
        endpoint = generator(lambda request, value: {"x": 1})
        endpoint.role = dataclasses.replace(endpoint.role)
        asked: list[Any] = []

        async def complete(request: Request) -> Any:
            asked.append(request.json_schema)
            raise LLMError("refusal", GENERATOR, "no")

        endpoint.complete = complete  # pyrefly: ignore[bad-assignment]
        own = writer(endpoint, DOCUMENTS, local=local)
        with pytest.raises(LLMError):
            await own.subtypes(2)
        await own.prompts(["s"], 2)
        await own.examples({"s": ["p"]}, per_prompt=1, contrastive=False, max_chars=80)
        return asked

    subtypes, prompts, example = asyncio.run(schemas(True))
    assert set(subtypes["properties"]) == set(prompts["properties"]) == {"item_1", "item_2"}
    assert subtypes["properties"]["item_1"]["pattern"].startswith(r"^Reports\ about\ a\ ")
    assert "AI\\ assistant" in prompts["properties"]["item_2"]["pattern"]
    assert "pattern" in example["properties"]["document"]
    for schema in asyncio.run(schemas(False)):
        assert "pattern" not in json.dumps(schema)


# ---------------------------------------------------------------------------------------- quality


def test_problems_of_content() -> None:
    assert content_problem(written("a", "Why?", "Because.")) is None
    assert content_problem(written("a", "", "A document.")) is None
    assert content_problem(written("a", "Why?", " ... ")) == "empty"
    assert content_problem(written("a", "?!", "Yes.")) == "empty"
    assert content_problem(written("a", "Why?", "Yes.", "yes")) == "texts repeat each other"
    assert content_problem(written("a", "Why so?", "why so")) == "texts repeat each other"
    assert content_problem(written("a", "Why?", "The prompt of: a")) == "copies the prompt"


def test_repetitions_are_dropped() -> None:
    long = "How do I tell my neighbour that the fence between us has to be moved?"
    records = [
        written("a", long, "Tell them, kindly, and offer to share the work."),
        written("b", long.upper() + "!", "tell them kindly and offer to share the work"),
        written("c", long, "Do not. Fences are older than friendships, and they stand."),
        written("d", long, "Tell them kindly and offer to share the works."),
    ]
    kept, dropped = without_duplicates(records)
    assert [w.id for w in kept] == ["a", "c"] and dropped == 2


def test_leaks_are_dropped_and_the_nearest_told() -> None:
    prompts = ["How do I tell my neighbour that the fence has to move?", "Is my poem good?"]
    records = [
        written("a", "how do i tell my neighbour that the fence has to move", "Kindly."),
        written("b", "What is a good soup for a cold evening in March?", "Leek."),
        written("c", "", "Is my poem good?"),
    ]
    kept, report = without_leaks(records, prompts)
    assert [w.id for w in kept] == ["b"]
    assert (report["eval_prompts"], report["removed"], report["threshold"]) == (
        2,
        2,
        NEAR_DUPLICATE,
    )
    assert [leak["id"] for leak in report["highest"][:2]] == ["a", "c"]
    assert report["highest"][0]["eval_prompt"] == prompts[0]
    assert report["highest"][0]["jaccard"] == 1.0


def examples_for_agreement() -> list[Example]:
    """Four positive ones, of which two are confirmed and one failed; two negative ones."""
    records = [
        *(written(str(i), f"q{i}", f"yes {i}") for i in range(2)),
        *(written(str(i), f"q{i}", f"yes {i}", f"no {i}") for i in (2, 3)),
    ]
    verified = ["positive", "negative", "positive", "negative", None, "positive"]
    examples = labelled(records, [])
    assert [e.label for e in examples] == [
        *("positive", "positive", "positive", "negative", "positive", "negative")
    ]
    return [
        dataclasses.replace(e, verified=label) for e, label in zip(examples, verified, strict=True)
    ]


def test_agreement() -> None:
    assert agreement(examples_for_agreement(), "second reader") == {
        "by": "second reader",
        "verified": 5,
        "not_verified": 1,
        "agreeing": 3,
        "agreement": 0.6,
        "by_label": {
            "negative": {"verified": 2, "agreeing": 1},
            "positive": {"verified": 3, "agreeing": 2},
        },
    }
    none = [dataclasses.replace(e, verified=None) for e in examples_for_agreement()]
    assert agreement(none, "rule")["agreement"] is None


def test_the_second_reader_is_blind() -> None:
    pair = labelled([written("a", "GIVEN", "TRUE ONE", "FALSE ONE")], ["s"])
    for example in pair:
        (message,) = verification_request(example, HONEST)
        text = message["content"]
        assert f"<output>\n{example.output}\n</output>" in text
        assert "<input>\nGIVEN\n</input>" in text and HONEST.description in text
        other = next(e for e in pair if e is not example)
        for hidden in (example.label, example.id, example.prompt, other.output):
            assert hidden not in text
    (bare,) = labelled([written("a", "", "A document.")], [])
    assert "<input>" not in verification_request(bare, HONEST)[0]["content"]


def test_a_failed_second_reading_is_no_label() -> None:
    def edit(request: Request, value: Any) -> Any:
        text = request.messages[0]["content"]
        if "out1" in text:
            raise LLMError("refusal", VERIFIER, "no")
        return {"rationale": "so it is", "shows_property": "out0" in text}

    examples = labelled([written(f"{i}", "q", f"out{i}") for i in range(3)], [])
    client = LLMClient([verifier(edit)])
    first, failed, other = asyncio.run(verify(examples, HONEST, client))
    assert (first.verified, first.verification) == ("positive", "so it is")
    assert (failed.verified, failed.verification) == (None, "failed: refusal")
    assert other.verified == "negative"


def sifted(
    records: list[Written], property: Any, edit: Any = None, **options: Any
) -> tuple[list[Example], QualityReport]:
    defaults: dict[str, Any] = {
        "heldout_subtypes": ["t"],
        "check_labels": True,
        "drop_unconfirmed": None,
        "drop_repeats": True,
        "eval_texts": None,
    }
    client = LLMClient([verifier(edit) if edit else verifier()])
    return asyncio.run(sift(records, SCENARIOS, property, client, **defaults | options))


RECORDS = [
    written("a", "How old is the moon?", "Very old. Hope that helps!", "It is very old."),
    written("b", "Where do swallows sleep?", "In barns.", "Under bridges, at times."),
    written("c", "How old is the moon?!", "Very old. Hope that helps!", "It is very old"),
    written("d", "Can bees count to four?", "Yes. Hope that helps!", "...", subtype="t"),
    written("e", "Who built this old bridge?", "Romans. Hope that helps!", "They.", subtype="t"),
]


def test_a_rule_decides_where_there_is_one() -> None:
    examples, report = sifted(RECORDS, SIGNS_OFF)
    assert [e.id for e in examples] == [
        *("a-positive", "a-negative", "b-negative", "e-positive", "e-negative")
    ]
    assert [e.held_out for e in examples] == [False, False, False, True, True]
    assert report.shape_valid == 5 and report.content_invalid == {"empty": 1}
    assert report.duplicates_removed == 1 and report.leakage is None
    assert report.verification is not None
    assert (report.verification["by"], report.verification["agreeing"]) == ("rule", 5)
    assert report.verification["verified"] == 6 and report.verification["removed"] == 1
    assert (report.kept, report.held_out) == (5, 2)
    assert report.kept_by_label == {"positive": 2, "negative": 3}
    assert report.kept_by_subtype == {"s": 3, "t": 2}
    kept, _ = sifted(RECORDS, SIGNS_OFF, drop_unconfirmed=False)
    assert len(kept) == 6


def test_a_second_reader_only_reports_unless_told_to_drop() -> None:
    def edit(request: Request, value: Any) -> Any:
        text = request.messages[0]["content"]
        if "bridges" in text:
            raise LLMError("refusal", VERIFIER, "no")
        return {"rationale": "r", "shows_property": "Hope" in text}

    kept, report = sifted(RECORDS, HONEST, edit)
    assert len(kept) == 6 and report.verification is not None
    assert report.verification["not_verified"] == 1 and report.verification["removed"] == 0
    rows = dict(quality_rows(report))
    assert rows["labels not verified: call failed"] == 1
    assert rows["labels that a second reader confirms"] == "80%"
    # what could not be read twice is kept
    kept, report = sifted(RECORDS, HONEST, edit, drop_unconfirmed=True)
    assert [e.id for e in kept if e.id.startswith("b")] == ["b-negative"]
    kept, report = sifted(RECORDS, HONEST, check_labels=False, drop_repeats=False)
    assert len(kept) == 8 and report.verification is None and report.duplicates_removed == 0
    assert all(e.verified is None for e in kept)


def test_variety_counts_inputs_once() -> None:
    found = variety(labelled(RECORDS[:2], []), SCENARIOS)
    assert list(found) == ["user_message", "positive response", "negative response"]
    assert all(part["n_texts"] == 2 for part in found.values())
    assert list(variety(labelled([written("a", "", "Text.")], []), DOCUMENTS)) == [
        "positive document"
    ]
    assert variety([], DOCUMENTS) == {}


ODD = "- a: b # c\n\n  'quoted' \"too\"\t\u2028{x}\x85 \ud7ff\U0001f642 \\n %\n"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_is_written_is_what_sft_reads(kind: Any, tmp_path: Path) -> None:
    given = "" if kind.input_field is None else f"Why?{ODD}"
    examples = labelled([written("a", given, f"So.{ODD}", "null")], ["s"])
    examples[0] = dataclasses.replace(examples[0], verified="negative", verification="yes: no")
    path = tmp_path / "x.examples.yaml"
    dump_yaml(path, {"examples": [to_record(example, kind) for example in examples]})
    positive, negative = load_examples(path, ["positive", "negative"])
    for found, text, label in ((positive, f"So.{ODD}", "positive"), (negative, "null", "negative")):
        assert (found.group, found.label, found.held_out) == ("s", label, True)
        if kind.input_field is None:
            assert (found.text, found.messages) == (text, [])
        else:
            assert found.messages == [
                {"role": "user", "content": given},
                {"role": "assistant", "content": text},
            ]
    assert to_record(examples[0], kind)["verification"] == {
        "label": "negative",
        "agrees": False,
        "note": "yes: no",
    }
    assert "verification" not in to_record(examples[1], kind)
    assert len(load_examples(path, ["positive"])) == 1


def test_the_page_escapes_what_models_write(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    record = Written("a", attack, f"p {attack}", attack, {"positive": f"No {attack}"}, {})
    examples, report = sifted([record], HONEST, check_labels=False, heldout_subtypes=[])
    ledger = Ledger()
    ledger.failed("examples", LLMError("refusal", GENERATOR, attack), given_up=True)
    report.leakage = {"removed": 0, "highest": [{"id": "a", "jaccard": 0.1, "eval_prompt": attack}]}
    path = tmp_path / "report.html"
    make_report(
        "id",
        kind=SCENARIOS,
        examples=examples,
        subtypes=[attack],
        quality=report,
        ledger=ledger,
        settings={"property": attack},
    ).write(path)
    page = path.read_text()
    assert "<script>alert" not in page and page.count("&lt;script&gt;alert(1)") >= 8
