"""scripts/ttt.py domain=bbh from end to end on a tiny random model.

uv run pytest tests/scripts/test_ttt_script.py
"""

import json
import math
import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bbh_world import NAMES, generated, save_bbh_model, write_files
from kills import kill_again_and_again
from run_results import ttt_difference, ttt_results
from ttt import entrypoint

from evaluation.bbh import difference_rows
from training.domains.bbh.data import TaskData
from training.domains.bbh.generated import FAMILIES
from training.domains.bbh.items import Item
from training.domains.bbh.methods import METHODS, TRAINED, Prediction, TaskResult
from training.domains.bbh.results import Finished, common_tasks, load_finished, paired_items
from training.domains.bbh.tasks import BY_NAME
from utils.runs.files import read_jsonl

SIZE, K = 9, 3
QUICK = (f"k={K}", "num_training_steps=4", "batch_size=2", "lora_rank=4", "lr=0.004")
PAGE = "<script>alert(1)</script> &amp;"

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_bbh_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks; one has markup in its questions, and a target that no answer can be."""
    items = [Item(f"{PAGE} {i} True is", "True") for i in range(SIZE - 1)]
    letters = [Item(f"{i}\nOptions:\n(A) x\n(B) y", "(A)") for i in range(SIZE - 1)]
    data = [
        TaskData(BY_NAME["boolean_expressions"], [*items, Item("False is", "False")], ""),
        *generated(NAMES[1:2], SIZE),
        TaskData(BY_NAME["ruin_names"], [*letters, Item("z", "a title")], ""),
    ]
    return write_files(tmp_path_factory.mktemp("bbh"), data)


TASKS = ("boolean_expressions", "web_of_lies", "ruin_names")
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def run(model: str, data_dir: Path) -> Run:
    """run(path, *arguments) -> path, after test-time training on the three tasks."""

    def start(path: Path, *arguments: str) -> Path:
        given = [f"model_name={model}", f"data_dir={data_dir}", f"tasks={','.join(TASKS)}"]
        entrypoint([*given, *QUICK, f"log_path={path}", *arguments])
        return path

    return start


@pytest.fixture(scope="module")
def finished(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """Baselines and trained runs of three seeds, by method and seed."""
    folder = tmp_path_factory.mktemp("finished")
    return {
        (method, seed): run(folder / f"{method}-{seed}", f"method={method}", f"seed={seed}")
        for method in ("baseline", "ttt")
        for seed in (42, 43, 44)
    }


def log_of(path: Path) -> list[dict[str, Any]]:
    return json.loads((path / "log.json").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------- whole runs


def test_a_copy_of_the_log_where_it_is_asked_for(
    run: Run, model: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    copy = tmp_path / "results.json"
    arguments = ["method=random_guessing", f"output_file={copy}"]
    path = run(tmp_path / "run", *arguments)
    assert json.loads(copy.read_bytes()) == log_of(path)
    # what the run itself left there may be written again, and nothing else
    run(tmp_path / "run", *arguments)
    assert f"output_file={copy} exists; name another file" in refused(f"output_file={copy}")
    copy.write_text("mine")
    for found in (
        refused(f"output_file={copy}", f"log_path={path}"),
        refused(f"output_file={copy}"),
    ):
        assert f"output_file={copy} exists; name another file" in found
    assert copy.read_text() == "mine"
    assert "is a folder; name a file in it" in refused(f"output_file={tmp_path}")
    nowhere = tmp_path / "nowhere" / "log.json"
    assert f"there is no folder {nowhere.parent}" in refused(f"output_file={nowhere}")
    assert not nowhere.parent.exists()
    # a finished run gives its copy later too
    late = tmp_path / "late.json"
    run(tmp_path / "run", "method=random_guessing", f"output_file={late}")
    assert json.loads(late.read_bytes()) == log_of(path)


@pytest.mark.parametrize("method", METHODS)
def test_log_has_the_published_structure(method: str, run: Run, tmp_path: Path) -> None:
    path = run(tmp_path / "run", f"method={method}")
    log = log_of(path)
    assert [entry["task"] for entry in log] == list(TASKS)
    name = {
        "baseline": "baseline_k3_42",
        "random_guessing": "random_guessing_k3_42",
        "ttt": "TTT_3_all_outputs_4_True_False_5_False_2_1_0.004_4_64.0_0.05_42",
        "e2e": "E2E_3_all_outputs_4_True_False_5_False_2_4_0.004_4_64.0_0.05_42",
        "shared_ttt": "SHARED_TTT_3_all_outputs_4_True_False_5_False_2_1_0.004_4_64.0_0.05_42",
        "shared_e2e": "SHARED_E2E_3_all_outputs_4_True_False_5_False_2_6_0.004_4_64.0_0.05_42",
    }[method]
    for entry in log:
        published = {"task", f"{name}_accuracy", "eval_time", "examples"}
        published |= {"ft_time"} if method in TRAINED else set()
        assert set(entry) == published | {"events", "unscorable", "predictions"}
        predictions = entry["predictions"]
        assert len(predictions) == SIZE - K
        accuracy = 100 * statistics.fmean(p["right"] for p in predictions)
        assert entry[f"{name}_accuracy"] == round(accuracy, 4)
        assert len(entry["examples"]) == 5
        for example, prediction in zip(entry["examples"], predictions, strict=False):
            assert set(example) == {"question", "prediction", "true_answer"}
            assert example["true_answer"] == prediction["true_answer"]
            assert example["true_answer"] == example["true_answer"].lower()
            assert example["prediction"] == prediction["prediction"]
            if method != "random_guessing":
                right = example["prediction"] == example["true_answer"]
                assert prediction["right"] == right
        assert entry["eval_time"] >= 0
    unscorable = [p for p in log[2]["predictions"] if p["true_answer"] == "a title"]
    assert log[2]["unscorable"] == len(unscorable)
    records = read_jsonl(path / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3]
    assert [next(key for key in record if "/" in key) for record in records] == [
        f"accuracy/{task}" for task in TASKS
    ]
    means = [record["accuracy/mean"] for record in records]
    assert means[-1] == pytest.approx(
        statistics.mean(r[f"accuracy/{t}"] for r, t in zip(records, TASKS, strict=True))
    )
    assert means[0] == records[0][f"accuracy/{TASKS[0]}"]


def test_what_is_printed_and_the_report(
    run: Run, tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(tmp_path / "run", "majority_vote=true", "vote_permutations=2", "max_items=4")
    shown = capsys.readouterr().out
    assert f"items from {data_dir}\n" in shown
    for task in (*TASKS, "mean"):
        assert re.search(rf"^{task} +\d", shown, re.MULTILINE)
    [mean] = re.findall(r"^mean +([\d.]+)", shown, re.MULTILINE)
    log = log_of(path)
    accuracies = [value for entry in log for key, value in entry.items() if "_accuracy" in key]
    assert float(mean) == pytest.approx(statistics.fmean(accuracies), rel=1e-3)
    assert {len(p["votes"]) for entry in log for p in entry["predictions"]} == {2}
    page = (path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp;amp;" in page
    assert "<svg" in page


@pytest.mark.parametrize("method", METHODS)
def test_task_start_and_task_end(method: str, model: str, data_dir: Path, tmp_path: Path) -> None:
    """For every method, unlike the published scripts."""
    arguments = [f"model_name={model}", f"data_dir={data_dir}", *QUICK, f"log_path={tmp_path}"]
    entrypoint([*arguments, f"method={method}", "task_start=17", "task_end=18", "max_items=2"])
    assert [entry["task"] for entry in log_of(tmp_path)] == ["ruin_names"]


def test_a_machine_without_data(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can be generated is used, and the output says so."""
    arguments = [f"model_name={model}", f"log_path={tmp_path}", "method=baseline", "k=0"]
    entrypoint([*arguments, "source=generated", "generated_size=2"])
    assert "items from a generator of this project\n" in capsys.readouterr().out
    assert len(log_of(tmp_path)) == len(FAMILIES)


def test_dry_run_leaves_nothing_behind(
    bare: str,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [f"model_name={bare}", f"data_dir={data_dir}", f"tasks={','.join(TASKS)}", *QUICK]
    entrypoint([*arguments, "majority_vote=true", "max_items=5", "dry_run=true"])
    shown = capsys.readouterr().out
    assert shown.startswith("TTT_3_all_outputs_4_True_True_5_False_2_1_0.004_4_64.0_0.05_42\n")
    for task in TASKS:
        # the number of answers is in a second block where the folder's name is long
        assert re.search(rf"^{task} .* {SIZE} +{K} +5( +25)?$", shown, re.MULTILINE)
        assert re.search(rf"^{task} .* 25$", shown, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- bad input


@pytest.fixture(scope="module")
def bare(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model without its weights: whatever loads it fails."""
    folder = tmp_path_factory.mktemp("bare")
    shutil.copy(Path(model) / "config.json", folder)
    return str(folder)


@pytest.fixture
def refused(
    bare: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """refused(*arguments) -> the error, which comes before a model is loaded or a file written."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)

    def start(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            entrypoint([f"model_name={bare}", *arguments])
        assert caught.value.code == 2
        assert list(empty.iterdir()) == []
        return capsys.readouterr().err

    return start


def test_all_settings_that_are_wrong_are_told_at_once(refused: Callable[..., str]) -> None:
    error = refused(
        *("method=e2e", "tasks=navigate,nope", "task_start=3", "k=0", "majority_vote=true"),
        *("vote_permutations=1", "leave_one_out=true", "num_training_steps=-1", "batch_size=0"),
        *("epochs=0", "lr=-1", "lora_rank=1000", "lora_alpha=0", "lora_dropout=1", "max_items=0"),
        *("lora_targets=", "weight_decay=nan", "max_parallel_adapters=0", "seed=-1"),
    )
    expected = [
        r"tasks names \['nope'\]; known are boolean_expressions, ",
        r"max_items=0: at least 1",
        r"batch_size=0: at least 1",
        r"epochs=0: at least 1",
        r"num_training_steps=-1: 0 or more",
        r"lr=-1.0: a number from 0",
        r"weight_decay=nan: a number from 0",
        r"lora_alpha=0.0: a number above 0",
        r"lora_dropout=1.0: from 0 to below 1",
        r"lora_targets=\[\]: name at least one layer",
        r"k=0: method=e2e trains on demonstrations",
        r"leave_one_out needs demonstrations",
        r"vote_permutations=1: a vote needs at least 2",
        r"majority_vote needs permutations to vote over",
        r"tasks and task_start/task_end: give one of them",
        r"lora_rank=1000: at most 32 is allowed",
        r"max_parallel_adapters=0: at least 1",
        r"seed=-1: at least 0",
    ]
    problems = re.findall(r"^  - (.*)$", error, re.MULTILINE)
    assert error.startswith(f"Error: {len(expected)} problems:")
    for problem, pattern in zip(problems, expected, strict=True):
        assert re.match(pattern, problem), problem


@pytest.mark.parametrize("method", ["ttt", "shared_ttt", "e2e", "shared_e2e"])
def test_a_rank_above_the_layers_size(method: str, refused: Callable[..., str]) -> None:
    settings = (f"method={method}", "source=generated", "tasks=navigate")
    assert re.match(r"Error: lora_rank=33: at most 32 ", refused(*settings, "lora_rank=33"))


@pytest.mark.parametrize("domain", [("source=generated", "tasks=navigate"), ("domain=arc",)])
def test_layers_that_the_model_has_not(
    domain: tuple[str, ...], model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the loaded model knows them; nothing is trained, nor asked."""
    settings = ("lora_targets=q_proj,w_proj", "lora_rank=4", f"log_path={tmp_path / 'run'}")
    with pytest.raises(SystemExit) as caught:
        entrypoint([f"model_name={model}", *domain, *settings])
    assert caught.value.code == 2
    assert "target_modules has ['w_proj']; this model has [" in capsys.readouterr().err


def test_settings_and_files_are_told_together(refused: Callable[..., str], tmp_path: Path) -> None:
    folder = write_files(tmp_path / "bbh", generated(size=5))
    (folder / "web_of_lies.json").write_text('{"examples": [{"input": "x"}]}')
    (folder / "snarks.json").write_text("no JSON")
    error = refused(f"data_dir={folder}", f"tasks={','.join(NAMES)},snarks", "k=5", "lora_rank=64")
    expected = [
        r"lora_rank=64",
        r".*web_of_lies\.json, examples\[0\]: needs text as input and target",
        r".*snarks\.json, line 1, byte 1: no",
        r"k=5: boolean_expressions has 5 items; k must be smaller",
        r"k=5: dyck_languages has 5 items; k must be smaller",
    ]
    problems = re.findall(r"^  - (.*)$", error, re.MULTILINE)
    for problem, pattern in zip(problems, expected, strict=True):
        assert re.match(pattern, problem), problem


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=magic"], r"method .*one of baseline, ttt, .*got 'magic'"),
        (["loss_mask=some"], r"loss_mask .*one of all_tokens, .*got 'some'"),
        (["domain=chess"], r"domain='chess': known are bbh, arc"),
        (["steps=3"], r"steps"),
        (["task_start=27"], r"task_start=27, task_end=None: 0 <="),
        (["task_start=3", "task_end=-1"], r"task_start=3, task_end=-1: 0 <="),
        (["data_dir=nowhere"], r"data_dir=nowhere: no such folder"),
        (["source=generated", "tasks=snarks"], r"snarks: these cannot be generated"),
        (["source=generated", "k=250", "tasks=navigate"], r"k=250: navigate has 250 items"),
        (["majority_vote=true", "shuffle=false"], r"majority_vote needs permutations"),
        (["majority_vote=true", "method=random_guessing"], r"majority_vote needs permutations"),
        (["leave_one_out=true", "k=1"], r"leave_one_out needs demonstrations"),
        (["model_name=./nowhere"], r"nowhere.*does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_bad_setting(arguments: list[str], message: str, refused: Callable[..., str]) -> None:
    settings = ["lora_rank=4"] if "domain=chess" not in arguments else []
    error = refused(*settings, *arguments)
    assert re.search(message, error), error
    assert "problems:" not in error


def test_comparing_what_is_no_run(
    refused: Callable[..., str],
    finished: dict[tuple[str, int], Path],
    run: Run,
    tmp_path: Path,
) -> None:
    arc = tmp_path / "arc"
    arc.mkdir()
    for name in ("tasks.jsonl", "log.json"):
        (arc / name).write_text("")
    (arc / "config.yaml").write_text("domain: arc\nseed: 1\n")
    good = finished["ttt", 42]
    error = refused(f"compare={good},{tmp_path / 'no'}")
    for name in ("config.yaml", "tasks.jsonl", "log.json"):
        assert f"compare names {tmp_path / 'no'}, where there is no {name}" in error
    assert "a run of domain=arc" in refused(f"compare={good},{arc}")
    again = refused(f"compare={good},{good / 'log.json'}")
    assert re.search(r"have the same settings and seed=42; name one of them", again)
    other = run(tmp_path / "other", "tasks=web_of_lies", "method=baseline")
    only = run(tmp_path / "only", "tasks=ruin_names")
    assert "no task in common" in refused(f"compare={other},{only}")


# ------------------------------------------------------------------------------------ comparing


def right_answers(path: Path, task: str) -> dict[int, int]:
    """By the item's index in its file."""
    [entry] = [entry for entry in log_of(path) if entry["task"] == task]
    return {p["index"]: int(p["right"]) for p in entry["predictions"]}


def test_compare(
    finished: dict[tuple[str, int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ",".join(str(path) for path in finished.values())
    entrypoint([f"compare={paths}", f"log_path={tmp_path / 'compared'}"])
    shown = capsys.readouterr().out
    by_task, differences = shown.split("\n\n")[:2]
    accuracy = {
        (key, entry["task"]): next(v for k, v in entry.items() if k.endswith("_accuracy"))
        for key, path in finished.items()
        for entry in log_of(path)
    }
    table = {
        line.split()[0]: re.findall(r"([\d.]+) ± ([\d.]+)", line) for line in by_task.splitlines()
    }
    assert by_task.split()[:3] == ["task", "baseline", "ttt"]
    for task in (*TASKS, "mean"):
        for method, (mean, error) in zip(("baseline", "ttt"), table[task], strict=True):
            of_seeds = [
                statistics.fmean(accuracy[(method, seed), t] for t in TASKS)
                if task == "mean"
                else accuracy[(method, seed), task]
                for seed in (42, 43, 44)
            ]
            assert float(mean) == pytest.approx(statistics.fmean(of_seeds), abs=0.051)
            expected = statistics.stdev(of_seeds) / math.sqrt(3)
            assert float(error) == pytest.approx(expected, abs=0.051)
    # what is wrapped goes on in lines that begin with blanks
    lines = [line for line in differences.splitlines()[2:] if not line.startswith(" ")]
    rows = {line.split()[0]: line.split() for line in lines}
    assert list(rows) == [*TASKS, "mean"]
    for task in TASKS:
        assert rows[task][1:3] == ["baseline", "ttt"]
        assert rows[task][-1] == str(3 * (SIZE - K))
        # a question that several seeds evaluate weighs as much as any other
        gained: dict[int, list[int]] = {}
        for seed in (42, 43, 44):
            base, tuned = (right_answers(finished[m, seed], task) for m in ("baseline", "ttt"))
            for index in base:
                gained.setdefault(index, []).append(tuned[index] - base[index])
        difference = 100 * statistics.fmean(statistics.fmean(g) for g in gained.values())
        assert float(rows[task][3]) == pytest.approx(difference, abs=0.051)
    mean_row = statistics.fmean(
        accuracy[("ttt", seed), t] - accuracy[("baseline", seed), t]
        for seed in (42, 43, 44)
        for t in TASKS
    )
    assert float(rows["mean"][3]) == pytest.approx(mean_row, abs=0.051)
    page = (tmp_path / "compared" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    assert "baseline: 3, ttt: 3" in page


def test_compared_runs_are_told_apart_by_what_differs(
    finished: dict[tuple[str, int], Path], run: Run, tmp_path: Path
) -> None:
    more = run(tmp_path / "more", "epochs=2")
    runs = load_finished([finished["ttt", 42], more, finished["baseline", 43]])
    assert [r.label for r in runs] == ["ttt epochs=None", "ttt epochs=2", "baseline"]
    assert [r.seed for r in runs] == [42, 42, 43]
    assert common_tasks(runs) == list(TASKS)


def test_one_seed_has_its_error_over_items(
    finished: dict[tuple[str, int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished["baseline", 42]
    entrypoint([f"compare={path},{finished['ttt', 43]}", f"log_path={tmp_path / 'compared'}"])
    shown = capsys.readouterr().out
    [entry] = [e for e in log_of(path) if e["task"] == "ruin_names"]
    share = statistics.fmean(p["right"] for p in entry["predictions"])
    error = 100 * math.sqrt(share * (1 - share) / (SIZE - K))
    assert re.search(rf"^ruin_names +{100 * share:.1f} ± {error:.1f} ", shown, re.MULTILINE)
    # other seeds have other splits
    assert shown.count("no item and seed in common") == len(TASKS) + 1


def by_hand(label: str, answered: dict[str, list[tuple[str, bool]]]) -> Finished:
    """A run with these questions of each task, right or wrong."""
    results = {}
    for task, questions in answered.items():
        predictions = [
            Prediction(index, question, "x", "x" if right else "y", right, scorable=True)
            for index, (question, right) in enumerate(questions)
        ]
        accuracy = 100 * statistics.fmean(right for _, right in questions)
        results[task] = TaskResult(task, accuracy, len(questions), 0, {}, 0.0, 0.0, 0, predictions)
    return Finished(Path(label), label, 42, results)


def test_only_the_same_questions_are_compared() -> None:
    """Where the items come from may differ between runs."""
    base = by_hand("base", {"snarks": [("a", False), ("b", True), ("c", False)]})
    tuned = by_hand("tuned", {"snarks": [("a", True), ("other", False), ("c", False), ("d", True)]})
    pairs = paired_items([base, tuned], "base", "tuned", "snarks")
    assert pairs == ([0.0, 0.0], [1.0, 0.0], ["a", "c"])
    [row] = difference_rows([base, tuned])
    assert (row[0], row[3], row[-1]) == ("snarks", "+50.0", 2)


def test_the_mean_difference_weighs_tasks_alike_and_varies_over_tasks() -> None:
    def questions(*right: int) -> list[tuple[str, bool]]:
        return [(f"q{i}", bool(value)) for i, value in enumerate(right)]

    base = {"snarks": questions(0, 0), "navigate": questions(0, 1, 0, 0), "dyck": questions(0, 0)}
    tuned = {"snarks": questions(1, 1), "navigate": questions(1, 1, 0, 0), "dyck": questions(0, 1)}
    rows = difference_rows([by_hand("base", base), by_hand("tuned", tuned)])
    assert [row[3] for row in rows] == ["+100.0", "+25.0", "+50.0", "+58.3"]
    # 4.303 is Student's 5 % point with 2 degrees of freedom
    margin = 4.303 * statistics.stdev([100, 25, 50]) / math.sqrt(3)
    mean = statistics.fmean([100, 25, 50])
    assert rows[-1][4] == f"{mean - margin:+.1f} to {mean + margin:+.1f}"
    assert rows[-1][-1] == 8


# --------------------------------------------------------------------------------------- resume


def test_a_run_in_two_parts_is_the_same_run(
    finished: dict[tuple[str, int], Path], run: Run, tmp_path: Path
) -> None:
    whole = finished["ttt", 42]
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    lines = (cut / "tasks.jsonl").read_bytes().splitlines(keepends=True)
    # killed while it wrote the second task, and before it measured the first
    (cut / "tasks.jsonl").write_bytes(lines[0] + lines[1][:50])
    (cut / "metrics.jsonl").unlink()
    (cut / "log.json").unlink()
    run(cut, "method=ttt", "seed=42", "max_parallel_adapters=1")
    assert (cut / "tasks.jsonl").read_bytes().startswith(lines[0])
    assert ttt_difference(cut, whole) is None


def test_other_items_than_before_are_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that began with generated items must not go on with those of the hub."""
    arguments = [f"model_name={model}", f"log_path={tmp_path}", "method=baseline", "k=0"]
    arguments += ["tasks=navigate,web_of_lies", "generated_size=3"]
    entrypoint([*arguments, "source=generated"])
    before = ttt_results(tmp_path)

    def rows(_hub_id: str, name: str, *, split: str) -> list[dict[str, str]]:
        return [{"input": f"{name} {split} {i}", "target": "Yes"} for i in range(4)]

    monkeypatch.setattr("datasets.load_dataset", rows)
    with pytest.raises(SystemExit):
        entrypoint(arguments)
    error = capsys.readouterr().err
    for task in ("navigate", "web_of_lies"):
        assert f"items of {task}: lukaemon/bbh holds something else than at the start" in error
    entrypoint([*arguments, "source=generated"])
    assert ttt_results(tmp_path) == before


@pytest.mark.slow
def test_kills_change_nothing(model: str, data_dir: Path, tmp_path: Path) -> None:
    settings = [f"model_name={model}", f"data_dir={data_dir}", f"tasks={','.join(TASKS)}", *QUICK]
    kill_again_and_again("ttt", tmp_path, *settings, "epochs=6", "max_parallel_adapters=1")
    logs = [path.read_text() for path in tmp_path.glob("run*/resumes.jsonl")]
    assert logs, "no run was killed after it had begun"
