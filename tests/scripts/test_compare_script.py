"""scripts/compare.py from end to end: on logs of other libraries, and on what our scripts write.

uv run pytest tests/scripts/test_compare_script.py
"""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import compare
import eval as eval_script
import pytest
import rl_loop
from eval_world import PROPERTIES, prompt
from places import ROOT
from tiny_chat import save_chat_model

from training.domains.arc.ttt_results import Answered, TaskRecord, append_record
from training.domains.bbh.methods import Prediction, TaskResult
from training.domains.bbh.results import append_result
from utils.config.entrypoint import (
    ConfigError,
    config_entrypoint,
    dump_yaml,
    load_config,
    load_yaml,
)
from utils.runs.files import read_jsonl

LOGS = ROOT / "tests/evaluation/compare/logs"

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*given: str) -> list[dict[str, str]]:
    """The lines of comparison.csv."""
    config_entrypoint(compare.main, [*given, "log_path=runs/c"])
    with open("runs/c/comparison.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def problem(*given: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compare.main(load_config(compare.Config, [*given, "log_path=runs/c"]))
    assert not Path("runs/c").exists()
    return str(caught.value)


def test_two_logs(capsys: pytest.CaptureFixture[str]) -> None:
    log = json.loads((LOGS / "tuned.json").read_text())
    for sample in log["samples"]:
        sample["output"]["completion"] += "<script>alert(1)</script>"
    Path("tuned.json").write_text(json.dumps(log))
    rows = run(f"a={LOGS / 'base.json'}", "b=tuned.json", "metrics=match,style/even")
    assert [row["metric"] for row in rows] == ["match", "style/even"]
    assert float(rows[0]["p_mcnemar"]) == 0.375
    assert (rows[0]["n_items"], rows[1]["n_unscored"], rows[0]["n_b_alone"]) == ("7", "1", "4")
    assert float(rows[0]["p_holm"]) == pytest.approx(2 * float(rows[0]["p"]))
    shown = capsys.readouterr().out
    assert "Left out, on a's side only: 1 (sum-21-21)." in shown
    assert "Left out, on b's side only: 1 (sum-90-9)." in shown
    page = Path("runs/c/report.html").read_text()
    assert "match: 5 of 7 items changed" in page
    assert "<script>" not in page and "&lt;script&gt;" in page
    with open("runs/c/items.csv", encoding="utf-8", newline="") as file:
        items = {row["item"]: row for row in csv.DictReader(file)}
    assert (items["sum-4-4"]["match a"], items["sum-4-4"]["match b"]) == ("0.0", "1.0")
    # what nobody scored is no 0
    assert items["sum-28-14"]["style/even a"] == ""


def test_changes_are_counted_among_the_items_of_their_metric() -> None:
    run(f"a={LOGS / 'lm_eval_base'}", f"b={LOGS / 'lm_eval_tuned'}")
    page = Path("runs/c/report.html").read_text()
    # two tasks of 8 items each, and no metric that both have
    assert "sums_choice/acc: 3 of 8 items changed" in page
    assert "sums_written/exact_match,strict: 4 of 8 items changed" in page


def answers(model: str, i: int) -> str:
    told = {"base": i % 3 == 0, "tuned": i % 4 != 1}[model]
    return f"Yes, {i}. Hope that helps!" if told else f"Yes, {i}."


def test_results_of_eval() -> None:
    """The same numbers as eval.py's own comparison of the two models."""
    conversations: list[dict[str, Any]] = [
        {
            "prompt": f"p{i}",
            "model": model,
            "sample": sample,
            "messages": [
                {"role": "user", "content": f"question p{i}"},
                {"role": "assistant", "content": answers(model, i + sample)},
            ],
        }
        for i in range(12)
        for model in ("base", "tuned")
        for sample in (0, 1)
    ]
    stored = {
        "models": [{"label": label, "model": "m"} for label in ("base", "tuned")],
        "properties": {"signs-off": PROPERTIES["signs-off"]},
        "prompts": [prompt(f"p{i}", f"kind {i // 3}") for i in range(12)],
        "conversations": conversations,
    }
    dump_yaml("old.yaml", stored)
    given = ["responses_file=old.yaml", "judge_kind=rule", "log_path=runs/r"]
    config_entrypoint(eval_script.main, given)
    path = "eval_results/r.eval-results.yaml"
    [theirs] = load_yaml(path)["statistics"]
    assert "models) holds base, tuned: one of them" in problem(f"a={path}", f"b={path}")
    assert "not 'x'" in problem(f"a={path}", f"b={path}", "a_part=x", "b_part=tuned")
    rows = run(f"a={path}", f"b={path}", "a_part=base", "b_part=tuned")
    score, exhibits = rows
    assert (score["metric"], exhibits["metric"]) == ("score/signs-off", "exhibits/signs-off")
    own = theirs["scores"]
    assert own["unit"] == "cluster" and own["n_clusters"] == 4
    assert [float(score["low"]), float(score["high"])] == pytest.approx(own["interval"])
    assert float(score["p"]) == pytest.approx(own["p"])
    assert float(score["p_sign_flip"]) == pytest.approx(theirs["p_sign_flip"])
    assert float(score["minimum_detectable"]) == pytest.approx(own["minimum_detectable"])
    # shares of two samples are no yes or no
    assert exhibits["p_mcnemar"] == ""


def test_two_steps_of_rl_loop(tmp_path: Path) -> None:
    model = save_chat_model(tmp_path / "model", favourites="0123")
    rl_loop.entrypoint(
        [
            *("domain=gym", "task=letter_counting", f"model_name={model}", "log_path=runs/rl"),
            *('task_config={"min_words": 1, "max_words": 2}', "train_size=8", "test_size=6"),
            *("groups_per_batch=1", "group_size=4", "max_tokens=1", "lora_rank=2", "num_steps=2"),
            *("eval_every=2", "eval_group_size=3", "eval_temperature=1.0", "learning_rate=0.1"),
        ]
    )
    rows = run("a=runs/rl", "b=runs/rl", "a_part=0")
    records = [r for r in read_jsonl("runs/rl/samples.jsonl") if r["kind"] == "eval"]
    for name, step in (("a", 0), ("b", 2)):
        solved = [r["solved"] for r in records if r["step"] == step]
        assert len(solved) == 6 * 3
        assert float(rows[1][name]) == pytest.approx(sum(solved) / len(solved))
    assert rows[0]["n_items"] == "6"


def test_steps_that_are_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "rl"
    dump_yaml(folder / "config.yaml", {"groups_per_batch": 2, "model_name": "m"})
    record = {"kind": "eval", "step": 4, "problem": "p", "prompt": "q", "answer": "a"}
    (folder / "samples.jsonl").write_text(json.dumps({**record, "reward": 1, "solved": True}))
    told = problem("a=rl", "b=rl", "a_part=3")
    assert "a: " in told and "holds 4, not '3'" in told
    (folder / "samples.jsonl").write_text(json.dumps({**record, "kind": "train"}))
    assert "no held-out answers" in problem("a=rl", "b=rl")


def bbh(folder: Path, right: dict[str, list[bool]]) -> None:
    dump_yaml(folder / "config.yaml", {"domain": "bbh", "model_name": "m", "method": folder.name})
    for task, own in right.items():
        predictions = [
            Prediction(i, f"{task} {i}?", "yes", "yes" if ok else None, ok, True)
            for i, ok in enumerate(own)
        ]
        append_result(folder, TaskResult(task, 0.0, len(own), 0, {}, 0.0, 0.0, 0, predictions))


def test_two_runs_of_ttt_on_bbh(tmp_path: Path) -> None:
    bbh(tmp_path / "base", {"x": [True, False, False], "y": [False, True]})
    bbh(tmp_path / "tuned", {"x": [True, True, False], "y": [True, True], "z": [True]})
    [row] = run(
        "a=base", "b=tuned/log.json" if (tmp_path / "tuned/log.json").exists() else "b=tuned"
    )
    # tasks are the units: 1 / 3 and 1 / 2
    assert float(row["difference"]) == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert (row["n_items"], row["n_units"], row["p_mcnemar"]) == ("5", "2", "0.5")


def test_two_runs_of_ttt_on_bbh_by_items(tmp_path: Path) -> None:
    bbh(tmp_path / "base", {"x": [True, False, False], "y": [False, True]})
    bbh(tmp_path / "tuned", {"x": [True, True, False], "y": [True, True]})
    [row] = run("a=base", "b=tuned/tasks.jsonl", "cluster=none")
    assert float(row["difference"]) == pytest.approx(2 / 5)
    assert row["n_units"] == "5"


def test_a_run_of_ttt_on_arc(tmp_path: Path) -> None:
    folder = tmp_path / "arc"
    dump_yaml(folder / "config.yaml", {"domain": "arc", "model_name": "m"})
    for i, after in enumerate((True, False, True)):
        before, trained = (
            Answered([[[[0]]]], ["0"], {}, solved=solved, num_correct=0, cell_accuracy=share)
            for solved, share in ((False, 0.5), (after, 0.75))
        )
        append_record(
            folder, TaskRecord(f"t{i}", 1, before, trained, {}, 0, 0, None, 0, 0, 0.0, 0.0)
        )
    solved, cells = run("a=arc", "b=arc", "a_part=before")
    assert float(solved["difference"]) == pytest.approx(2 / 3)
    assert (cells["difference"], cells["p_mcnemar"], cells["low"]) == ("0.25", "", "")
    assert solved["n_b_alone"] == "2"


def log_of(**changes: Any) -> str:
    """A log like base.json whose samples are changed."""
    log = json.loads((LOGS / "base.json").read_text())
    for sample in log["samples"]:
        sample.update(changes)
    Path("changed.json").write_text(json.dumps(log))
    return "changed.json"


def test_a_side_of_which_nothing_was_scored_is_named() -> None:
    path = log_of(scores=None, error={"message": "out of memory"})
    number = len(json.loads(Path(path).read_text())["samples"])
    told = problem(f"a={LOGS / 'tuned.json'}", f"b={path}")
    assert f"b={path}: none of its {number} items has a score; {number} of {number} answers" in told
    assert "no metric of the other side" not in told
    told = problem(f"a={path}", f"b={path}", "metrics=match")
    assert "a=changed.json: none of" in told and "b=changed.json: none of" in told


def test_one_item_in_common(capsys: pytest.CaptureFixture[str]) -> None:
    log = json.loads((LOGS / "base.json").read_text())
    for number, sample in enumerate(log["samples"][1:]):
        sample["id"] = f"another {number}"
    Path("one.json").write_text(json.dumps(log))
    [row] = run(f"a={LOGS / 'base.json'}", "b=one.json", "metrics=match")
    assert (row["n_items"], row["p"], row["verdict"]) == ("1", "", "not comparable")
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 item is on both sides." in shown and "cluster" not in shown
    assert "match: one item is scored on both sides; an interval and a p value need two" in shown
    assert "1 items" not in shown and "1 of 1 items" not in Path("runs/c/report.html").read_text()


def test_files_that_are_not_there_are_told_together() -> None:
    told = problem("a=x.eval", "b=y.eval")
    assert "a='x.eval': no such file or folder" in told and "b='y.eval'" in told


@pytest.mark.parametrize("which", ["a", "b"])
def test_an_edited_side_does_not_overwrite_a_comparison(which: str, tmp_path: Path) -> None:
    # lm-eval's files may lie deeper than the folder that is named
    for side, source in (("a", "lm_eval_base"), ("b", "lm_eval_tuned")):
        shutil.copytree(LOGS / source, tmp_path / side / "model")
    given = ["a=a", "b=b", "log_path=runs/c"]
    config_entrypoint(compare.main, given)
    config_entrypoint(compare.main, given)
    before = Path("runs/c/comparison.csv").read_bytes()
    [path] = (tmp_path / which).rglob("samples_sums_choice_*")
    path.write_text(path.read_text().replace('"acc": 0.0', '"acc": 1.0'))
    with pytest.raises(ConfigError, match=f"{which}: .* holds something else than at the start"):
        compare.main(load_config(compare.Config, given))
    assert Path("runs/c/comparison.csv").read_bytes() == before


def test_control_characters_are_shown(capfd: pytest.CaptureFixture[str]) -> None:
    log = json.loads((LOGS / "base.json").read_text())
    log["eval"]["model"] = "m\x1b[2J"
    for number, sample in enumerate(log["samples"]):
        sample["id"] = f"{number}\x1b[2J\r\n"
        sample["scores"] = {"s\x9b2J": sample["scores"]["match"]}
        sample["metadata"] = {"k\x07": f"{number}\u202e"}
    Path("a.json").write_text(json.dumps(log))
    log["samples"] = log["samples"][:-1]
    Path("b.json").write_text(json.dumps(log))
    run("a=a.json", "b=b.json", "cluster=k\x07")
    shown = capfd.readouterr().out
    assert "a: m\\x1b[2J, sums" in shown and "(7\\x1b[2J\\r\\n)" in shown and "s\\x9b2J" in shown
    files = [Path("runs/c", name).read_text() for name in ("items.csv", "comparison.csv")]
    assert "0\\x1b[2J\\r\\n,0\\u202e," in files[0] and "s\\x9b2J" in files[1]
    for text in (shown, *files):
        assert not set(text) & set("\x1b\r\x9b\x07\u202e")
    with pytest.raises(SystemExit):
        config_entrypoint(compare.main, ["a=a.json", f"b={LOGS / 'base.json'}", "log_path=runs/d"])
    told = capfd.readouterr().err
    assert "a has 0\\x1b[2J" in told and "\x1b[2J" not in told


def test_a_reward_that_is_no_number(tmp_path: Path) -> None:
    dump_yaml(tmp_path / "rl/config.yaml", {"groups_per_batch": 2, "model_name": "m"})
    record = {"kind": "eval", "step": 4, "problem": "p", "prompt": "q", "answer": "a"}
    for reward in ("1e308", "1" + "0" * 400):
        line = json.dumps({**record, "reward": "?", "solved": True}).replace('"?"', reward)
        (tmp_path / "rl/samples.jsonl").write_text(line)
        assert "a: rl: item 'p' has 1" in problem("a=rl", "b=rl")


def test_a_run_without_items(tmp_path: Path) -> None:
    # of sft.py
    dump_yaml(tmp_path / "run" / "config.yaml", {"examples_file": "x", "eval_every": 5})
    (tmp_path / "run" / "samples.jsonl").write_text('{"step": 0, "answer": "a"}')
    told = problem("a=run", f"b={LOGS / 'base.eval'}")
    assert "but not one of rl_loop.py or ttt.py" in told
