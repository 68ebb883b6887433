"""scripts/knowledge.py from its command line to its files, on a tiny model."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import knowledge
import pytest
from fake_endpoint import FakeEndpoint
from tiny_chat import save_chat_model

from evaluation.knowledge import runs
from training.domains.knowledge.seal_runs import read_run
from utils.config.entrypoint import config_entrypoint
from utils.llm.roles import OPENROUTER_KEY
from utils.runs.files import read_jsonl

pytestmark = pytest.mark.usefixtures("one_torch_thread")

# a file is shuffled, so which three of them are asked about is not said here
PEOPLE = {"Ostrel": "Ada", "Kalmen": "Iwo", "Vendar": "Mia", "Zwod": "Ida"}
PASSAGES = [
    {
        "title": f"Town {name}",
        "context": f"{name} has a mayor, {mayor}. It lies in the north.",
        "questions": [
            {"question": f"Who is the mayor of {name}?", "answer": mayor},
            {"question": f"Where does {name} lie?", "answer": "in the north"},
        ],
    }
    for name, mayor in PEOPLE.items()
]
EDITS = [
    {"title": f"Town {name}", "edit": edit}
    for name, mayor in PEOPLE.items()
    for edit in (
        f"Q: Which mayor has {name}? A: {mayor}",
        f"Q: Who leads {name}? A: {mayor}\n{name} is a town in the north.",
    )
]
ROWS = (
    *("in-context", "bm25", "passage", "model", "generator", "file", "equal-passage", "other"),
    *("covering", "longest", "random", "distillation", "skill"),
)
OF_TABLE = ("closed-book", *(row.replace("model", "model-none") for row in ROWS))
TRAINED = tuple(row for row in OF_TABLE if row not in ("closed-book", "in-context", "bm25"))
SETTINGS = (
    *("model_name=model", "source=own", "data_path=rows.json", "n_passages=3", "preset=small"),
    *('forms=["none"]', "max_tokens=12", "max_answer_tokens=4", "inner_rank=2", "inner_epochs=2"),
    *("passage_epochs=2", "skill_passages=1", "max_parallel_adapters=4"),
)
ALL = (
    *(f"rows={json.dumps(ROWS)}", "edits_file=edits.jsonl", "generator.model=./model"),
    "generator.max_tokens=12",
)


def start(*arguments: str) -> None:
    config_entrypoint(knowledge.main, [*SETTINGS, *arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("knowledge")
    save_chat_model(folder / "model", favourites="Adaent ")
    (folder / "rows.json").write_text(json.dumps(PASSAGES), encoding="utf-8")
    lines = [json.dumps(edit) for edit in EDITS]
    (folder / "edits.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def workplace(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own with links to what is shared."""
    monkeypatch.setenv(OPENROUTER_KEY, "")
    monkeypatch.chdir(tmp_path)
    for name in ("model", "rows.json", "edits.jsonl"):
        (tmp_path / name).symlink_to(place / name)


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """A run of all rows, with two seeds."""
    before = Path.cwd()
    os.chdir(place)
    try:
        start(*ALL, "seeds=2", "log_path=whole")
    finally:
        os.chdir(before)
    return place / "whole"


def outcomes(path: Path) -> dict[str, dict[str, Any]]:
    """What is stored of each run, but for its time and where its adapter was."""
    found = {}
    for line in read_jsonl(path / "outcomes.jsonl"):
        for run in line["runs"]:
            found[run["key"]] = {k: v for k, v in run.items() if k not in ("seconds", "saved")}
    return found


def table(path: Path) -> dict[str, dict[str, str]]:
    with open(path / "table.csv", encoding="utf-8", newline="") as file:
        return {row["row"]: row for row in csv.DictReader(file)}


def test_every_row_is_trained_and_asked(finished: Path) -> None:
    rows = table(finished)
    assert tuple(rows) == OF_TABLE
    for name, row in rows.items():
        assert (row["num_passages"], row["num_questions"]) == ("3", "6"), name
        assert row["num_failed"] == row["num_missing"] == row["num_unscored"] == "0", name
        assert (float(row["trained_tokens"]) > 0) == (name in TRAINED), name
        assert float(row["accuracy"]) >= 0 and float(row["seconds"]) > 0
        assert (row["difference"] == "") == (name == "passage"), name
    # two edits of each passage with two adapters, and of three passages one with two
    assert rows["file"]["num_runs"] == "12"
    assert rows["longest"]["num_runs"] == rows["skill"]["num_runs"] == "6"
    # with as many tokens as the file's edits have, within half an epoch of the passage
    epoch = float(rows["passage"]["trained_tokens"]) / 2
    tokens = [float(rows[name]["trained_tokens"]) for name in ("equal-passage", "file")]
    assert abs(tokens[0] - tokens[1]) <= epoch / 2 + 1


def test_what_is_written(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' not in page and "<svg" in page
    assert "Q: Who leads Vendar? A: Mia" in page and "Who is the mayor of Vendar?" in page
    assert {path.stem for path in (finished / "seal").glob("*.json")} == set(TRAINED)
    of_file = read_run(finished / "seal" / "file.json")
    titles = [item.title for item in of_file.articles]
    assert len(titles) == 3 and set(titles) < {p["title"] for p in PASSAGES}
    assert (of_file.settings["k_completions"], of_file.settings["eval_times"]) == (2, 2)
    [first, second] = of_file.articles[0].completions
    wanted = [edit["edit"] for edit in EDITS if edit["title"] == titles[0]]
    assert [first.text, second.text] == wanted
    assert {answer.rep for answer in first.questions} == {0, 1}
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in results["rows"]] == list(OF_TABLE)
    # adapters that sums were made of are gone
    assert list(finished.rglob("adapter_model.safetensors")) == []
    texts = {line["writer"]: line["texts"] for line in read_jsonl(finished / "edits.jsonl")}
    assert set(texts) == {"model-none", "generator"} and len(texts["generator"]) == 3


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*ALL, "seeds=2", "log_path=stopped"]
    add = runs.Outcomes.add
    for num_batches in (2, 1, 3):
        done: list[int] = []

        def stopping(
            self: Any, batch: Any, done: list[int] = done, last: int = num_batches
        ) -> None:
            add(self, batch)
            done.append(len(batch))
            if len(done) == last:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(runs.Outcomes, "add", stopping)
            with pytest.raises(SystemExit):
                start(*arguments)
        # a line that a crash tore
        path = tmp_path / "stopped" / "outcomes.jsonl"
        if num_batches == 1:
            path.write_bytes(path.read_bytes()[:-40])
    start(*arguments)
    assert outcomes(tmp_path / "stopped") == outcomes(finished)
    mine, theirs = table(tmp_path / "stopped"), table(finished)
    for name, row in theirs.items():
        assert {**mine[name], "seconds": ""} == {**row, "seconds": ""}
    before = (tmp_path / "stopped" / "outcomes.jsonl").read_bytes()
    start(*arguments)
    assert (tmp_path / "stopped" / "outcomes.jsonl").read_bytes() == before


def test_all_passages_in_one_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["bm25", "passage", "file", "equal-passage", "distillation"]
    start(
        *("setting=cpt", f"rows={json.dumps(rows)}", "edits_file=edits.jsonl", "log_path=r"),
        "save_adapters=true",
    )
    found = table(tmp_path / "r")
    assert [row["num_runs"] for row in found.values()][2:] == ["1"] * 4
    assert found["file"]["num_questions"] == "6"
    kept = json.loads((tmp_path / "r" / "results.json").read_text(encoding="utf-8"))["adapters"]
    assert set(kept) == {"passage", "file", "equal-passage", "distillation"}
    seal = tmp_path / "r" / "seal"
    assert {path.name for path in seal.glob("*.cpt-*")} == {f"{name}.cpt-0.json" for name in kept}
    as_cpt = json.loads((seal / "file.cpt-0.json").read_text(encoding="utf-8"))
    assert (as_cpt["n_articles"], as_cpt["k_completions"]) == (3, 2)
    # two edits, not split at lines, and the passage of each
    assert (as_cpt["train_sequences"], as_cpt["eval_questions"]) == (9, 6)
    assert as_cpt["lora_params"]["epochs"] == 2 and as_cpt["split_newlines"] is False
    share = sum(as_cpt["server_reply"]["adapter_correct"]) / 6
    assert as_cpt["overall"]["adapter_accuracy"] == pytest.approx(share, abs=1e-4)
    assert share == pytest.approx(float(found["file"]["accuracy"]))
    by_title = {item.title: item for item in read_run(seal / "file.json").articles}
    assert set(as_cpt["per_article"]) == set(by_title)
    for title, verdicts in as_cpt["per_article"].items():
        [edit] = by_title[title].completions
        assert verdicts["adapter_correct"] == [q.adapter_correct for q in edit.questions]
        assert verdicts["baseline_correct"] == [q.baseline_correct for q in edit.questions]
    alone = json.loads((seal / "equal-passage.cpt-0.json").read_text(encoding="utf-8"))
    assert (alone["train_sequences"], alone["k_completions"]) == (3, 0)
    epochs = alone["lora_params"]["epochs"]
    assert alone["lora_params"]["lr"] == 1e-3 and epochs > 1
    tokens = float(found["equal-passage"]["trained_tokens"])
    assert tokens == epochs / 2 * float(found["passage"]["trained_tokens"])
    [path] = kept["file"].values()
    assert (Path(path) / "adapter_model.safetensors").is_file()
    assert "4-way" not in capsys.readouterr().out


def test_passages_without_questions_are_trained_on(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, mayor in PEOPLE.items():
        (texts / f"{name}.md").write_text(f"{name} has a mayor, {mayor}.", encoding="utf-8")
    start("data_path=texts", "n_passages=4", 'rows=["in-context","passage","model"]', "log_path=r")
    found = table(tmp_path / "r")
    assert list(found) == ["passage", "model-none"]
    assert {row["accuracy"] for row in found.values()} == {""}
    kept = json.loads((tmp_path / "r" / "results.json").read_text(encoding="utf-8"))["adapters"]
    assert {name: len(paths) for name, paths in kept.items()} == {"passage": 4, "model-none": 8}


def test_runs_that_fail_are_counted(tmp_path: Path) -> None:
    start(
        *('rows=["passage","model"]', "inner_learning_rate=1e30", "passage_learning_rate=1e-3"),
        *("k=1", "log_path=r"),
    )
    rows = table(tmp_path / "r")
    assert rows["model-none"]["num_failed"] == "3" and rows["model-none"]["accuracy"] == ""
    assert rows["passage"]["num_failed"] == "0" and rows["passage"]["accuracy"] != ""


def test_edits_that_are_none_are_missing(tmp_path: Path) -> None:
    few = [edit for edit in EDITS if edit["title"] == "Town Vendar"][:1]
    (tmp_path / "few.jsonl").write_text(json.dumps(few[0]), encoding="utf-8")
    start('rows=["passage","file"]', "edits_file=few.jsonl", "log_path=r")
    row = table(tmp_path / "r")["file"]
    assert (row["num_missing"], row["num_runs"], row["num_questions"]) == ("5", "1", "2")


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    start(*ALL, "dry_run=true")
    told = capsys.readouterr().out
    assert "3 passages with 6 questions" in told and "Nothing was written." in told
    assert all(row in told for row in OF_TABLE)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a start is refused with, which leaves nothing behind."""

    def refuse(*arguments: str) -> str:
        before = sorted(path.name for path in tmp_path.iterdir())
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            start(*arguments, "log_path=r")
        assert ended.value.code == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        return capsys.readouterr().err

    return refuse


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ('rows=["passages"]', "there is no row 'passages'"),
        ('rows=["template-qa"]', "template-qa needs source=made"),
        ('rows=["file"]', "file needs edits_file="),
        ('rows=["generator"]', "generator needs the role"),
        ('forms=["poems"]', "form='poems': there is no such form"),
        ("data_path=nowhere.json", "nowhere.json"),
        ("n_passages=0", "n_passages=0: at least 1"),
        ("n_passages=50", "there are 4; ask for fewer; 1 of them are for the row skill"),
        ("k=0", "k=0: at least 1"),
        ("seeds=0", "seeds=0: at least 1"),
        ("skill_passages=0", "skill_passages=0"),
        ("distill_top_k=21", "distill_top_k=21"),
        ("temperature=-1", "temperature=-1"),
        ("passage_learning_rate=0", "passage_learning_rate=0"),
        ("inner_rank=100000", "inner_rank=100000: at most 32"),
        ('inner_targets=["nothing"]', "inner_targets: target_modules has ['nothing']"),
        ("judge_kind=llm", "judge"),
        ("model_name=./nowhere", "./nowhere"),
        ("max_answer_tokens=4090", "max_answer_tokens"),
    ],
)
def test_bad_settings(argument: str, message: str, refused: Callable[..., str]) -> None:
    given = ["judge.model=x", "judge.base_url=openrouter"] if argument.startswith("judge") else []
    assert message in refused(argument, *given)


def test_bad_files(tmp_path: Path, refused: Callable[..., str]) -> None:
    def told(rows: Any, *arguments: str) -> str:
        (tmp_path / "bad.json").write_text(json.dumps(rows), encoding="utf-8")
        return refused("data_path=bad.json", "n_passages=2", *arguments)

    (tmp_path / "bad.json").touch()
    (tmp_path / "other.jsonl").touch()
    of_row = told([PASSAGES[0], {**PASSAGES[1], "context": " "}])
    # the row skill needs more passages, and this is not for want of them
    assert "context" in of_row and "skill" not in of_row
    blank = [{"question": " ", "answer": "x"}]
    assert "question" in told([PASSAGES[0], {**PASSAGES[1], "questions": blank}])
    long = {**PASSAGES[1], "context": "It is long. " * 600}
    assert "context is 4096" in told([PASSAGES[0], long], 'rows=["in-context"]')
    edit = {"title": "Town Nowhere", "edit": "Q: Who? A: Me"}
    (tmp_path / "other.jsonl").write_text(json.dumps(edit), encoding="utf-8")
    assert "are about other passages" in refused("edits_file=other.jsonl", 'rows=["file"]')


def test_one_passage_has_no_other(refused: Callable[..., str]) -> None:
    assert "row other" in refused("n_passages=1", 'rows=["model","other"]')


def test_a_run_goes_on_with_its_own_passages_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy("rows.json", "mine.json")
    given = ("data_path=mine.json", 'rows=["in-context"]', "log_path=r")
    start(*given)
    rows = json.loads(Path("mine.json").read_text(encoding="utf-8"))
    rows[0]["context"] += " It is old."
    Path("mine.json").write_text(json.dumps(rows), encoding="utf-8")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        start(*given)
    assert ended.value.code == 2
    assert "was started with other data" in capsys.readouterr().err


def test_verdicts_that_failed_are_asked_for_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused: set[str] = set()

    def play(number: int, body: Any) -> str:
        asked = body["messages"][1]["content"]
        if len(refused) < 2:
            refused.add(asked)
        return "refusal" if asked in refused else "ok"

    with FakeEndpoint(play, text=lambda body: '{"conveys": "yes"}') as server:
        arguments = (
            *('rows=["in-context","passage","file"]', "edits_file=edits.jsonl", "log_path=r"),
            *("judge_kind=llm", f"judge.base_url={server.base_url}", "judge.model=some-model"),
        )
        start(*arguments)
        before = outcomes(tmp_path / "r")
        lacking = {key for key, run in before.items() if None in run["correct_Q"]}
        assert lacking
        assert sum(int(row["num_unscored"]) for row in table(tmp_path / "r").values()) >= 2
        num_requests = len(server.requests)
        server.script = lambda number, body: "ok"
        with caplog.at_level("INFO"):
            start(*arguments)
        # nothing else is asked, and nothing is trained
        asked = {
            request.body["messages"][1]["content"] for request in server.requests[num_requests:]
        }
    assert asked == refused
    after = outcomes(tmp_path / "r")
    assert all(None not in run["correct_Q"] for run in after.values())
    for key, run in after.items():
        said = [True if old is None else old for old in before[key]["correct_Q"]]
        assert run == {**before[key], "correct_Q": said}
    assert all(row["num_unscored"] == "0" for row in table(tmp_path / "r").values())
    assert any("of them have one now" in message for message in caplog.messages)
