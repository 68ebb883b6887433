"""Results of inspect_ai and lm-eval, in files that the libraries wrote (logs/make_*.py), compared.

uv run pytest tests/evaluation/compare/test_compare_readers.py
"""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from scipy import stats

from evaluation.compare.comparison import Row, choose_metrics, compare, match_items
from evaluation.compare.items import Item, Side, as_score
from evaluation.compare.sources import open_side
from utils.config.entrypoint import ConfigError

LOGS = ROOT / "tests/evaluation/compare/logs"


def opened(path: Path) -> Side:
    return open_side("a", path, None)


def compared(a: Side, b: Side, cluster: str | None = None) -> dict[str, Row]:
    matched = match_items(a, b)
    metrics = choose_metrics(a, b, [])
    return {row.metric: row for row in compare(a, b, matched, metrics, cluster, seed=0)}


def scores(side: Side, metric: str) -> dict[str, float | None]:
    return {id: item.scores[metric] for id, item in side.items.items()}


# ---- inspect_ai


@pytest.mark.parametrize("form", ["eval", "json"])
def test_an_inspect_log(form: str) -> None:
    base, tuned = opened(LOGS / f"base.{form}"), opened(LOGS / f"tuned.{form}")
    assert base.model == "mockllm/model, sums"
    assert base.metrics == ["match", "style/digits", "style/even"]
    # C and I of the scorer match
    right = {id for id, score in scores(base, "match").items() if score == 1}
    assert right == {"sum-2-3", "sum-11-5", "sum-12-9", "sum-21-21"}
    assert set(scores(base, "match").values()) == {0, 1}
    # the grader that refused is unscored in both of its numbers
    assert scores(base, "style/digits")["sum-28-14"] is None
    assert scores(base, "style/even")["sum-28-14"] is None
    assert scores(base, "style/even")["sum-17-8"] == 1
    item = base.items["sum-17-8"]
    assert (item.question, item.answer, item.fields) == ("17 + 8 = ", "24", {"tens": 1})

    matched = match_items(base, tuned)
    assert (matched.only_a, matched.only_b) == (["sum-21-21"], ["sum-90-9"])
    row = compared(base, tuned)["match"]
    expected = stats.ttest_rel([1, 1, 1, 1, 0, 1, 1], [1, 0, 1, 0, 1, 0, 0])
    assert row.found.p == pytest.approx(float(expected.pvalue))
    interval = expected.confidence_interval()
    assert row.found.interval == pytest.approx((float(interval.low), float(interval.high)))
    assert row.mcnemar is not None
    assert (row.mcnemar.n_gained, row.mcnemar.n_lost) == (4, 1)
    assert row.mcnemar.p == pytest.approx(2 * (1 + 5) / 2**5)
    assert row.found.n_prompts == 7
    assert compared(base, tuned)["style/digits"].found.n_unscored == 1


def test_both_forms_of_a_log_are_one() -> None:
    matched = match_items(opened(LOGS / "base.eval"), opened(LOGS / "base.json"))
    assert len(matched.ids) == 8 and not matched.other_question


def test_items_of_one_field_are_one_unit() -> None:
    base, tuned = opened(LOGS / "base.eval"), opened(LOGS / "tuned.eval")
    row = compared(base, tuned, "tens")["match"]
    # of tens 0: 0 and 1; of 1: 0, 1, -1; of 2: 1 and 1
    assert row.found.unit_differences == pytest.approx((0.5, 0, 1))
    with pytest.raises(ConfigError, match=r"cluster='ten': item 'sum-2-3' of a .* \(tens\)"):
        compared(base, tuned, "ten")


def test_epochs_are_averaged() -> None:
    side = opened(LOGS / "epochs.eval")
    assert len(side.items) == 8
    assert side.notes == ("2 answers per item: their mean is the item's score",)
    assert set(scores(side, "match").values()) <= {0, 0.5, 1}
    rows = compared(opened(LOGS / "base.eval"), side)
    assert (rows["match"].mcnemar is None) == (0.5 in scores(side, "match").values())


def sample(log: dict[str, Any], id: str) -> dict[str, Any]:
    return next(one for one in log["samples"] if one["id"] == id)


def change_log(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    log = json.loads((LOGS / "base.json").read_text())
    change(log)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(log))
    return path


@pytest.mark.parametrize("compression", ["zstd", "deflate", "bzip2", "lzma", "encrypted"])
def test_a_damaged_member_of_a_log_is_named(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "damaged.eval"
    if compression == "zstd":
        shutil.copy(LOGS / "base.eval", path)
    else:
        methods = {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}
        method = methods.get(compression, zipfile.ZIP_DEFLATED)
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("header.json", json.dumps({"status": "success"}))
    data = bytearray(path.read_bytes())
    if compression == "encrypted":
        # a flag of the member, in the list of members
        data[data.rindex(b"PK\x01\x02") + 8] |= 1
    else:
        start = data.index(b"samples/") if compression == "zstd" else data.index(b"PK\x03\x04")
        body = slice(start + 45, start + 55)
        data[body] = bytes(byte ^ 0xFF for byte in data[body])
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"^a: .*damaged.eval, .*json: cannot be unpacked"):
        opened(path)


def test_an_inspect_item_that_stands_twice(tmp_path: Path) -> None:
    path = change_log(tmp_path, lambda log: log["samples"].append(sample(log, "sum-11-5")))
    with pytest.raises(ConfigError, match=r"a: .*'sum-11-5' \(answer 1 to it\) stands there twice"):
        opened(path)


def test_one_id_with_another_question_is_left_out(tmp_path: Path) -> None:
    def ask_else(log: dict[str, Any]) -> None:
        sample(log, "sum-2-3")["input"] = "2 + 4 = "

    matched = match_items(opened(LOGS / "base.eval"), opened(change_log(tmp_path, ask_else)))
    assert matched.other_question == ["sum-2-3"] and len(matched.ids) == 7

    def ask_all_else(log: dict[str, Any]) -> None:
        for one in log["samples"]:
            one["input"] += "?"

    with pytest.raises(ConfigError, match="the 8 ids in common are other questions"):
        match_items(opened(LOGS / "base.eval"), opened(change_log(tmp_path, ask_all_else)))


def test_answers_without_a_score(tmp_path: Path) -> None:
    def fail(log: dict[str, Any]) -> None:
        log["status"] = "error"
        sample(log, "sum-2-3").update({"scores": None, "error": {"message": "no connection"}})
        sample(log, "sum-4-4")["scores"]["match"]["value"] = "maybe"
        sample(log, "sum-4-4")["scores"]["style"]["value"] = {"digits": 1, "even": [1]}

    side = opened(change_log(tmp_path, fail))
    assert side.notes == (
        "status 'error': not all items may have been answered",
        "1 of 8 answers ended with an error: unscored",
    )
    assert scores(side, "style/digits")["sum-2-3"] is None
    # metrics that are no numbers are named, and not counted as 0
    assert side.metrics == ["style/digits"]
    assert side.unusable["match"] == "item 'sum-4-4' has 'maybe', no number"
    assert "[1]" in side.unusable["style/even"]
    base = opened(LOGS / "base.json")
    # the reason is told also where the user names no metrics
    expected = r"match, style/even of b .*; match: item 'sum-4-4' has 'maybe', .* choose with metri"
    with pytest.raises(ConfigError, match=expected):
        choose_metrics(side, base, [])
    with pytest.raises(ConfigError, match="metrics names 'match': in a, item 'sum-4-4' has"):
        choose_metrics(side, base, ["match"])
    assert choose_metrics(side, base, ["style/digits"]) == ["style/digits"]


# ---- lm-eval


def test_lm_eval_samples_of_two_tasks() -> None:
    base, tuned = opened(LOGS / "lm_eval_base"), opened(LOGS / "lm_eval_tuned")
    assert base.metrics == [
        *("sums_choice/acc", "sums_choice/acc_norm"),
        *("sums_written/exact_match,strict", "sums_written/exact_match,last-number"),
    ]
    assert len(base.items) == 16
    rows = compared(base, tuned)
    strict = rows["sums_written/exact_match,strict"]
    # items of the other task are not unscored, they were never asked
    assert (strict.found.n_prompts, strict.found.n_unscored) == (8, 0)
    assert (strict.found.base_mean, strict.found.tuned_mean) == (1 / 8, 5 / 8)
    assert strict.mcnemar is not None and strict.mcnemar.p == 2 / 2**4
    assert strict.p_sign_flip == 2 / 2**4
    # Holm: the smallest of four p values times four
    assert strict.found.p == min(row.found.p or 0 for row in rows.values())
    assert strict.p_holm == pytest.approx(4 * (strict.found.p or 0))


def test_lm_eval_samples_of_one_file() -> None:
    [a] = (LOGS / "lm_eval_base").glob("samples_sums_written_*")
    [b] = (LOGS / "lm_eval_tuned").glob("samples_sums_written_*")
    rows = compared(opened(a), opened(b), "tens")
    assert list(rows) == ["exact_match,strict", "exact_match,last-number"]
    assert len(rows["exact_match,strict"].found.unit_differences) == 3
    assert opened(a).items["3"].question == "17 + 8 ="
    [other] = (LOGS / "lm_eval_base").glob("samples_sums_choice_*")
    with pytest.raises(ConfigError, match=r"exact_match,strict, .* of b"):
        compared(opened(other), opened(a))


def test_lm_eval_twice(tmp_path: Path) -> None:
    [path] = (LOGS / "lm_eval_base").glob("samples_sums_written_*")
    for day in (1, 2):
        shutil.copy(path, tmp_path / f"samples_sums_written_2026-01-0{day}T01-00-00.5.jsonl")
    with pytest.raises(ConfigError, match=r"01-01.*01-02.* are both of task sums_written"):
        opened(tmp_path)
    lines = path.read_text().splitlines()
    twice = tmp_path / "twice.jsonl"
    twice.write_text("\n".join([*lines, lines[2]]))
    with pytest.raises(ConfigError, match=r"line 17: item 2 with filter 'strict' stands there twi"):
        opened(twice)


def test_lm_eval_metrics_of_a_whole_corpus(tmp_path: Path) -> None:
    [path] = (LOGS / "lm_eval_base").glob("samples_sums_choice_*")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record["metrics"].append("bleu")
        record["bleu"] = ["reference", "answer"]
    changed = tmp_path / "samples_sums_choice_2026-01-01T01-00-00.5.jsonl"
    changed.write_text("".join(json.dumps(record) + "\n" for record in records))
    side = opened(changed)
    assert side.metrics == ["acc", "acc_norm"]
    assert side.unusable["bleu"].endswith(
        "item 0 has ['reference', 'answer'], no number; a number of the item's own is needed"
    )


# ---- what cannot be read, or matched


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("x.eval", "PK?", r"no \.eval log of inspect_ai"),
        ("x.json", "[1]", "expected a JSON object"),
        ("x.json", '{"results": {}}', r"samples_\*\.jsonl of --log_samples is needed"),
        ("x.json", '{"eval": {}, "samples": [{"input": "q"}]}', "form has it, 'id' is missing"),
        ("x.json", '{"eval": {}, "samples": [{"id": 1, "scores": 5}]}', "a value is of another ty"),
        ("x.json", '{"eval": {}, "samples": []}', "there is no item in it"),
        ("x.jsonl", '{"a": 1}', "line 1: no sample of lm-eval"),
        ("x.jsonl", "{", "line 1, byte 2: no JSON"),
        ("x.yaml", "a: 1", "no results of scripts/eval.py"),
        ("x.txt", "", r"an \.eval or \.json log of inspect_ai, .* is needed"),
    ],
)
def test_other_files(name: str, text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected) as caught:
        opened(path)
    assert str(path) in str(caught.value) and str(caught.value).startswith("a")
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("name", ["x.eval", "x.json", "x.yaml", "x.jsonl"])
def test_a_folder_with_a_file_s_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.mkdir()
    with pytest.raises(ConfigError, match=rf"^a: .*{name}: an \.eval or \.json log .* is needed"):
        opened(path)
    for file in (LOGS / "lm_eval_base").iterdir():
        shutil.copy(file, path)
    assert opened(path).form == "samples of lm-eval"


def test_one_item_is_told_as_one() -> None:
    def side(question: str) -> Side:
        return Side(Path("x"), "form", "m", {"i": Item("i", {"s": None}, {}, "", "", question)})

    with pytest.raises(ConfigError, match="the only id in common, i, is another question on each"):
        match_items(side("q"), side("another"))
    with pytest.raises(ConfigError, match="a=x: its only item has no score"):
        choose_metrics(side("q"), side("q"), [])


def test_two_forms_and_no_common_items() -> None:
    inspect, lm_eval = opened(LOGS / "base.eval"), opened(LOGS / "lm_eval_base")
    with pytest.raises(ConfigError, match="a is a log of inspect_ai, b samples of lm-eval"):
        match_items(inspect, lm_eval)
    [file] = (LOGS / "lm_eval_base").glob("samples_sums_written_*")
    with pytest.raises(ConfigError, match=r"no item in common \(a has sums_choice/0, .* has 0, 1"):
        match_items(lm_eval, opened(file))


def test_a_part_of_what_has_none() -> None:
    with pytest.raises(ConfigError, match="has no parts to choose from, '3' was named"):
        open_side("a", LOGS / "base.eval", "3")


def test_clusters_that_differ() -> None:
    def side(cluster: str) -> Side:
        item = Item("i", {"acc": 1.0}, {"topic": cluster}, "q", "", None)
        return Side(Path("x"), "form", "m", {"i": item})

    with pytest.raises(ConfigError, match="item 'i' is in 'x' for a, in 'y' for b"):
        compared(side("x"), side("y"), "topic")


def test_scores() -> None:
    given = ["C", "I", "P", "N", True, 0.25, 3, "yes", "False", "0.5"]
    assert [as_score(value) for value in given] == [1, 0, 0.5, 0, 1, 0.25, 3, 1, 0, 0.5]
    assert as_score(float("nan")) is None
    for value in ("c", None, [1], {"x": 1}, "B"):
        with pytest.raises(ValueError, match=r"no number$"):
            as_score(value)
    for value in (float("inf"), "-inf", 1e308, -1e308, 10**400, "1e101"):
        with pytest.raises(ValueError, match=r"no number within -1e\+100\.\.1e\+100$"):
            as_score(value)


def test_the_largest_scores_are_compared() -> None:
    def side(*given: float) -> Side:
        items = {
            str(i): Item(str(i), {"s": as_score(score)}, {}, "", "", None)
            for i, score in enumerate(given)
        }
        return Side(Path("x"), "form", "m", items)

    row = compared(side(1e100, -1e100, 0), side(-1e100, 1e100, 1e100))["s"]
    assert row.found.difference == pytest.approx(1e100 / 3)


@pytest.mark.parametrize(
    "value",
    ["maybe", None, float("inf"), [1], 10**400, 1e308],
    ids=["text", "None", "inf", "list", "integer", "float"],
)
def test_why_a_metric_of_one_side_is_none(tmp_path: Path, value: Any) -> None:
    def spoil(log: dict[str, Any]) -> None:
        for one in log["samples"]:
            one["scores"] = {"match": {"value": value}}

    def keep_one(log: dict[str, Any]) -> None:
        for one in log["samples"]:
            del one["scores"]["style"]

    (tmp_path / "b").mkdir()
    whole, spoilt = change_log(tmp_path, keep_one), change_log(tmp_path / "b", spoil)
    a, b = opened(whole), opened(spoilt)
    with pytest.raises(
        ConfigError, match=r"match of a .*; match: item 'sum-11-5' has .*, no number"
    ):
        choose_metrics(a, b, [])
    with pytest.raises(
        ConfigError, match=r"no metric .*; match of a: .*; match of b: item 'sum-11-5'"
    ):
        choose_metrics(b, b, [])
