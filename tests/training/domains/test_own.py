"""Domains of the user's own, from a file or a module.

uv run pytest tests/training/domains/test_own.py
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import chz
import pytest
import rl_loop
import sweep
from places import ROOT
from tiny_chat import save_chat_model

from training.domains.base import Domain, Message, Problem, RawPrompt, Reward, Split, Stateless
from training.domains.checks import check_domain, checked_problems, checked_rewards
from training.domains.own import load_own, own_file, told_as_own
from utils.config.entrypoint import ConfigError
from utils.runs.files import read_jsonl

pytestmark = pytest.mark.usefixtures("one_torch_thread")
SMALL = (
    *("length=3", "max_tokens=1", "num_steps=2", "groups_per_batch=2", "group_size=8"),
    *("lora_rank=4", "eval_size=3", "learning_rate=0.01"),
)


def documented() -> str:
    """The domain of docs/own_domain.md."""
    text = (ROOT / "docs" / "own_domain.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return code


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_chat_model(tmp_path_factory.mktemp("chat"), favourites="0123")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user works, with the documented domain in own/count_letter.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "count_letter.py").write_text(documented(), encoding="utf-8")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        rl_loop.entrypoint(list(arguments))
    assert exit_info.value.code == 2
    return capsys.readouterr().err


# ------------------------------------------------------------------------------------- what works


def test_the_documented_domain_is_short() -> None:
    assert len(documented().splitlines()) < 40


@pytest.mark.parametrize(
    "domain", ["own/count_letter.py:CountLetter", "own.count_letter:CountLetter"]
)
def test_the_documented_domain_trains(
    domain: str, model: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"domain={domain}", f"model_name={model}", "log_path=run", *SMALL]
    # of another test
    sys.modules.pop("own.count_letter", None)
    sys.modules.pop("own", None)
    rl_loop.entrypoint(arguments)
    metrics = read_jsonl(folder / "run" / "metrics.jsonl")
    assert [m["step"] for m in metrics if "train/reward" in m] == [1, 2]
    assert any(m.get("optim/grad_norm", 0) > 0 for m in metrics), "no update: change the seed"
    updates = sum(m["updates"] for m in metrics if "train/reward" in m)
    assert f"after 2 batches, {updates} update" in capsys.readouterr().out
    prompts = {sample["prompt"] for sample in read_jsonl(folder / "run" / "samples.jsonl")}
    assert any("a occur in" in prompt for prompt in prompts)
    # what stands in the file decides the run
    rl_loop.entrypoint([*arguments, "num_steps=3"])
    with open(folder / "own" / "count_letter.py", "a", encoding="utf-8") as file:
        file.write("# edited\n")
    told = refused(capsys, *arguments, "num_steps=4")
    assert "domain: " in told
    assert "count_letter.py holds something else than at the start" in told


def test_help_and_check_show_its_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    domain = "domain=own/count_letter.py:CountLetter"
    with pytest.raises(SystemExit) as exit_info:
        rl_loop.entrypoint([domain, "--help"])
    assert exit_info.value.code == 0
    shown = capsys.readouterr().out
    assert "letters in the string that is asked about" in shown
    assert "task_set" not in shown
    for arguments, problems in ((["length=4"], 0), (["length=four", "lenght=4"], 2)):
        with pytest.raises(SystemExit):
            rl_loop.entrypoint([domain, *arguments, "--check"])
        told = json.loads(capsys.readouterr().out)
        assert len(told["problems"]) == problems
        if not problems:
            assert told["config"]["length"] == 4
            assert told["inputs"]["domain"]["source"] == "own/count_letter.py"


def test_the_documented_commands_are_valid(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("own")
    # the sweep asks the script as users run it
    monkeypatch.delenv("PYTEST_VERSION", raising=False)
    text = (ROOT / "docs" / "own_domain.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in re.findall(r"uv run scripts/(.*)", text)]
    assert [command[0] for command in commands] == ["rl_loop.py", "rl_loop.py", "sweep.py"]
    for script, *arguments in commands:
        start = rl_loop.entrypoint if script == "rl_loop.py" else sweep.entrypoint
        with contextlib.suppress(SystemExit):
            start([*(a for a in arguments if a != "--help"), "--check"])
        assert json.loads(capsys.readouterr().out)["problems"] == []


def test_a_config_file_may_name_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "own.yaml").write_text("domain: own/count_letter.py:CountLetter\nlength: 5\n")
    with pytest.raises(SystemExit):
        rl_loop.entrypoint(["config_file=own.yaml", "--check"])
    assert json.loads(capsys.readouterr().out)["config"]["length"] == 5


@pytest.mark.slow
def test_a_sweep_of_it(model: str, folder: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_VERSION"}
    command = [
        *(sys.executable, str(ROOT / "scripts" / "sweep.py"), "script=rl_loop", "log_path=sweep"),
        *("domain=own/count_letter.py:CountLetter", f"model_name={model}"),
        *(a for a in SMALL if not a.startswith("length=")),
        'sweep={"length":[2,3]}',
    ]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more], capture_output=True, text=True, env=environment, cwd=folder
        )

    done = run()
    assert done.returncode == 0, done.stderr
    cells = json.loads((folder / "sweep" / "sweep.json").read_text())["cells"]
    assert [(cell["name"], cell["status"]) for cell in cells] == [
        ("length=2", "done"),
        ("length=3", "done"),
    ]
    with open(folder / "own" / "count_letter.py", "a", encoding="utf-8") as file:
        file.write("# edited\n")
    done = run("dry_run=true")
    assert done.returncode == 2
    assert "own/count_letter.py holds something else" in done.stderr


def test_files_beside_it_can_be_imported_and_are_found_only_then(folder: Path) -> None:
    (folder / "own" / "beside.py").write_text("NAME = 'beside'\n")
    code = documented().replace('"count_letter"', "beside.NAME")
    (folder / "own" / "other.py").write_text(f"import beside\n{code}")
    before = list(sys.path)
    assert load_own("own/other.py:CountLetter").domain_class.name == "beside"
    assert sys.path == before


def test_the_project_s_own_domains_go_by_module_too() -> None:
    from training.domains.gym import GymConfig, GymDomain

    found = load_own("training.domains.gym:GymDomain")
    assert found == (GymDomain, GymConfig)
    assert own_file("training.domains.gym:GymDomain") == ROOT / "training" / "domains" / "gym.py"
    assert own_file("gym") is None


# ------------------------------------------------------------------------------- what is refused


BARE = """
import chz
@chz.chz
class Settings:
    {field}
class Mine:
    def __init__(self, config: Settings, service): ...
    def problems(self, split): return []
    def rewards(self, problems_P, answers_P_G): return []
"""
STATELESS = BARE.replace(
    "class Mine:", "from training.domains.base import Stateless\nclass Mine(Stateless):"
)


ONE = """def problems(self, split):
        from training.domains.base import Problem
        return [Problem('a', [{'role': 'user', 'content': '?'}], 1)]
    """


@pytest.mark.parametrize(
    ("domain", "source", "message"),
    [
        ("nowhere.py:Mine", "", "domain='nowhere.py:Mine': nowhere.py: no such file"),
        ("mine.py", "", "and path/to/file.py:Class or package.module:Class of your own"),
        ("mine.py:", "", "an own domain is written path/to/file.py:Class or"),
        (":Mine", "", "an own domain is written"),
        (".json:Mine", "", "domain='.json:Mine': an own domain is written path/to/file.py:Class"),
        ("no.module:Mine", "", "there is no module no in this folder, nor installed"),
        ("training.nothing:Mine", "", "there is no module training.nothing in this folder"),
        ("mine.py:Mine", "x = 1\nclass Mine(:\n", "mine.py, line 2: invalid syntax"),
        ("mine.py:Mine", "\0", "mine.py: source code string cannot contain null bytes"),
        ("own/:Mine", "", "domain='own/:Mine': own is a folder; an own domain is written path/to"),
        (
            "mine.py:Mine",
            STATELESS.format(field="width: int = chz.field(default_factory=lambda: [][0])"),
            "mine.py, line 5: IndexError: list index",
        ),
        (
            "mine.py:Mine",
            STATELESS.format(field="@chz.validate\n    def _check(self): {}['width']"),
            "mine.py, line 6: KeyError: 'width'",
        ),
        ("mine.py:Mine", "import nothing_such\n", "line 1: ModuleNotFoundError: No module named"),
        ("mine.py:Mine", "x = 1\ny = z\n", "mine.py, line 2: NameError: name 'z'"),
        ("mine.py:Mine", "x = 1\nraise SystemExit(3)\n", "mine.py, line 2: SystemExit: 3"),
        ("mine.py:Other", STATELESS, "mine.py has no class Other; its classes are Settings, Mine"),
        ("mine.py:Mine", "Mine = 3\n", "mine.py has no class Mine; its classes are none"),
        (
            "mine.py:Mine",
            BARE,
            "Mine lacks state(), load_state(), close(), invalid(), reward_tokens(), solution(); ",
        ),
        ("mine.py:Mine", STATELESS.replace(": Settings,", ","), "a chz class with the domain's"),
        (
            "mine.py:Mine",
            STATELESS.replace(": Settings,", ": int,"),
            "a chz class with the domain's",
        ),
        ("mine.py:Mine", STATELESS.replace(", service", ""), "has to take (self, config: Settings"),
        (
            "mine.py:Mine",
            STATELESS.format(field="seed: int = 1"),
            "Settings.seed is a setting of the script too, int = 0, not int = 1; give it another",
        ),
        (
            "mine.py:Mine",
            STATELESS.format(field="group_size: int = 8"),
            "Settings.group_size is a setting of the script too, int | None = None, not int = 8",
        ),
        (
            "mine.py:Mine",
            STATELESS.format(field="config_file: str = ''\n    experiment: str = ''"),
            "Settings.experiment has a meaning of its own in all scripts",
        ),
        (
            "mine.py:Mine",
            STATELESS.format(field="def device(self): return 'cpu'"),
            "Settings.device is a setting of the script; give it another name",
        ),
    ],
)
def test_what_is_wrong_with_it_is_told(
    domain: str, source: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if source:
        source = source.replace("{field}", "width: int = 2")
        (folder / "mine.py").write_text(source, encoding="utf-8")
    before = sorted(folder.iterdir())
    assert message in refused(capsys, f"domain={domain}")
    with pytest.raises(SystemExit):
        rl_loop.entrypoint([f"domain={domain}", "--check"])
    assert any(message in problem for problem in json.loads(capsys.readouterr().out)["problems"])
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("def __init__(self, config: Settings, service): 1 / 0", "ZeroDivisionError: division by"),
        ("def state(self): return self.nothing", "AttributeError: 'Mine' object has no attr"),
        ("def problems(self, split): return [][split]", "TypeError: list indices must be"),
        ("def problems(self, split): raise ValueError('too few')", "ValueError: too few"),
        (f"{ONE}def solution(self, problem): return problem.data[0]", "TypeError: 'int' object is"),
        (f"{ONE}def rewards(self, *_): return 1 / 0", "ZeroDivisionError: division by"),
        ("def problems(self, split): return []\n    def close(self): 1 / 0", "ZeroDivisionError: "),
        ("def problems(self, split): return open('nowhere')", "FileNotFoundError: "),
        # in a library, called from there
        ("def problems(self, split): return __import__('json').loads('[')", "JSONDecodeError: "),
    ],
)
def test_what_its_own_code_raises_is_told_with_its_line(
    broken: str, message: str, folder: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = STATELESS.format(field="width: int = 2").rstrip()
    source += f"\n    name = 'mine'\n    max_tokens = 3\n    {broken}\n"
    (folder / "mine.py").write_text(source, encoding="utf-8")
    told = refused(capsys, "domain=mine.py:Mine", f"model_name={model}", "log_path=broken")
    line = len(source.splitlines())
    assert f"domain='mine.py:Mine': mine.py, line {line}: {message}" in told
    # a progress bar may stand above it
    assert "Error: " in told and "Traceback" not in told
    assert not (folder / "broken").exists()


def test_what_the_template_refuses_is_told_without_a_setting_that_is_none(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = save_chat_model(tmp_path / "strict", favourites="012")
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (Path(strict) / "chat_template.jinja").write_text(template)
    source = documented().replace('turns = [("user"', 'turns = [("system", "Be brief."), ("user"')
    (folder / "mine.py").write_text(source, encoding="utf-8")
    told = refused(capsys, "domain=mine.py:CountLetter", f"model_name={strict}", "length=2")
    assert "refuses messages with the roles ['system', 'user', " in told and "no system" in told
    assert "Problem with raw=" in " ".join(told.split()) and "role_colon" not in told


def test_the_same_setting_is_shared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.py").write_text(STATELESS.format(field="seed: int = 0"), encoding="utf-8")
    with pytest.raises(SystemExit) as exit_info:
        rl_loop.entrypoint(["domain=mine.py:Mine", "seed=3", "--check"])
    assert exit_info.value.code == 0
    assert json.loads(capsys.readouterr().out)["config"]["seed"] == 3


@chz.chz
class Nothing:
    pass


class Right(Stateless):
    """A domain as it should be, until a test changes a part of it."""

    name = "right"
    max_tokens = 4

    def __init__(self, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self, name, value)

    def problems(self, split: Split) -> list[Problem]:
        return [problem("a"), problem("b")]

    def rewards(
        self, problems_P: list[Problem], answers_P_G: list[list[str]]
    ) -> list[list[Reward]]:
        return [[Reward(1.0, True) for _ in answers_G] for answers_G in answers_P_G]


def problem(key: Any, messages: Any = None, data: Any = 0, **more: Any) -> Problem:
    turns: list[Message] = [{"role": "user", "content": "?"}]
    return Problem(key, turns if messages is None else messages, data, **more)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"algorithm": "sgd"}, ["its algorithm is 'sgd'; "]),
        ({"max_tokens": "4"}, ["its max_tokens is '4'; int is needed"]),
        ({"max_tokens": 0}, ["its max_tokens is 0; at least 1"]),
        ({"json_schema": "{}", "name": None}, ["its name is None; str", "its json_schema is '{}'"]),
        ({"state": lambda: {"seen": {1}}}, ["its state() is no plain data for JSON"]),
    ],
)
def test_attributes_are_checked(changes: dict[str, Any], messages: list[str]) -> None:
    check_domain(Right(), "right")
    with pytest.raises(ConfigError) as error:
        check_domain(Right(**changes), "mine.py:Mine")
    assert len(error.value.problems) == len(messages)
    for message, told in zip(messages, error.value.problems, strict=True):
        assert told.startswith(f"domain='mine.py:Mine': {message}")


def test_missing_attributes_are_named() -> None:
    class Bare(Stateless):
        pass

    with pytest.raises(ConfigError) as error:
        check_domain(Bare(), "mine.py:Bare")
    assert error.value.problems == [
        "domain='mine.py:Bare': it lacks name, str",
        "domain='mine.py:Bare': it lacks max_tokens, int",
    ]


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        ([], "problems('train') of Right is []; a list of at least one Problem"),
        (None, "is None; a list of at least one Problem is needed"),
        (["a"], "number 0: 'a'; a Problem(id, messages, data) with a text as id is needed"),
        ([problem(1)], "a text as id is needed"),
        ([problem("a"), problem("a")], "the id 'a' is given 2 times"),
        ([problem("a", messages=[])], "number 0: its messages are []; a list of at least one"),
        ([problem("a", grammar=" ")], "its grammar is ' '; a grammar as a text, or None"),
        ([problem("a", raw="text")], "its raw is 'text'; a RawPrompt with a text"),
        ([problem("a", raw=RawPrompt(""))], "its raw is RawPrompt(text='', stop=())"),
        ([problem("a", messages=["?"])], "message '?'; a dict with role and content is needed"),
        (
            [problem("a", messages=[{"role": "user", "content": [{"type": "text"}]}])],
            "its role and its content have to be texts",
        ),
        (
            [problem("a", messages=[{"role": "user", "content": None}])],
            "its role and its content have to be texts",
        ),
    ],
)
def test_problems_are_checked(problems: Any, message: str) -> None:
    assert [p.id for p in checked_problems(Right(), "train")] == ["a", "b"]
    with pytest.raises(ConfigError, match=re.escape(message)):
        checked_problems(Right(problems=lambda split: problems), "train")


# what a user without a type checker may give
UNTYPED: dict[Any, Any] = {"no": "no", None: None}


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (None, "gave None; a list for each of 2 problems"),
        ([[Reward(1.0, True)] * 2], "a list for each of 2 problems"),
        ([[Reward(1.0, True)] * 2, [Reward(1.0, True)]], "for 2 answers to b"),
        ([[Reward(1.0, True)] * 2, [1.0, 0.0]], "gave 1.0 to b; Reward(value, solved) with"),
        ([[Reward(float("nan"), False)] * 2] * 2, "value=nan"),
        ([[Reward(10**400, False)] * 2] * 2, "value=1000"),
        (
            [[Reward(1.0, UNTYPED["no"])] * 2] * 2,
            "solved='no', note='', success=None) to a; Reward(value, solved) with",
        ),
        ([[Reward(1.0, UNTYPED[None])] * 2] * 2, "solved=None"),
        ([[Reward(1.0, True, UNTYPED[None])] * 2] * 2, "note=None, success=None) to a; "),
        ([[Reward(1.0, True, "", UNTYPED["no"])] * 2] * 2, "success='no') to a; "),
    ],
)
def test_rewards_are_checked(rewards: Any, message: str) -> None:
    problems, answers = [problem("a"), problem("b")], [["1", "2"], ["3", "4"]]
    assert checked_rewards(Right(), problems, answers)[1][1].solved
    with pytest.raises(ConfigError, match=re.escape(message)):
        checked_rewards(Right(rewards=lambda *_: rewards), problems, answers)


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        (("", "json_schema = {'type': 'nope'}"), (), "its json_schema: Invalid type: nope"),
        (("", "json_schema = {'enum': {1}}"), (), "its json_schema: it is no plain data for JSON"),
        (('word.count("a"))', 'word.count("a"), grammar="start: no")'), (), "unknown name: "),
        (("[Reward(float(right), right)", "[float(right)"), (), "rewards() of CountLetter gave 0."),
        (
            ("", "reward_tokens = lambda self, problem: 'ten'"),
            ("dry_run=true",),
            "reward_tokens() of CountLetter gave 'ten' for ",
        ),
    ],
)
def test_what_a_run_cannot_use_leaves_no_folder(
    changes: tuple[str, str],
    more: tuple[str, ...],
    message: str,
    model: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old, new = changes
    name = '    name = "count'
    code = documented().replace(old or name, new if old else f"    {new}\n{name}")
    (folder / "mine.py").write_text(code, encoding="utf-8")
    told = refused(
        capsys, "domain=mine.py:CountLetter", f"model_name={model}", "log_path=run", *SMALL, *more
    )
    assert "Error: " in told and message in told
    assert not (folder / "run").exists()


def test_a_run_goes_on_without_its_domain_s_file(folder: Path) -> None:
    name = "own/count_letter.py:CountLetter"
    load_own(name)
    (folder / "own" / "count_letter.py").unlink()
    with told_as_own(name):
        pass


def test_defaults_of_the_loop_are_checked(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = documented()
    for defaults, wrong in (
        ("{'group_sise': 4}", "group_sise=4"),
        ("{'num_steps': '4', 'group_size': 4}", "num_steps='4'"),
        # the script has defaults of its own for these, which would win
        ("{'eval_every': 1, 'group_size': 4}", "eval_every=1"),
        ("{'lr_schedule': 'linear'}", "lr_schedule='linear'"),
    ):
        changed = code.replace(
            '    name = "count', f'    loop_defaults = {defaults}\n    name = "count'
        )
        (folder / "mine.py").write_text(changed, encoding="utf-8")
        told = refused(capsys, "domain=mine.py:CountLetter", f"model_name={model}", "length=3")
        assert f"its loop_defaults have {wrong}; allowed are" in told
        assert "num_steps: int" in told
    assert not (folder / "runs").exists()


def test_a_solution_has_to_be_plain(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = documented().replace('word.count("a"))', "object())")
    (folder / "mine.py").write_text(code, encoding="utf-8")
    told = refused(capsys, "domain=mine.py:CountLetter", f"model_name={model}", "length=3")
    assert "its solution() has to be plain data, by which runs know it (object has no" in told
    assert not (folder / "runs").exists()


def test_a_domain_of_the_protocol_is_one() -> None:
    domain: Domain = Right()
    check_domain(domain, "right")
