"""Config layers, their errors, and YAML in and out."""

import enum
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Literal

import chz
import numpy as np
import pytest

from utils.config import (
    ConfigError,
    config_entrypoint,
    config_help,
    dump_yaml,
    load_config,
    load_yaml,
    raise_problems,
    to_plain,
)

ROOT = Path(__file__).resolve().parent.parent


class Kind(enum.Enum):
    QA_PAIRS = "qa-pairs"
    SUMMARY = "summary"


@chz.chz(typecheck=True)
class Optimizer:
    learning_rate: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.95)


@chz.chz(typecheck=True)
class Config:
    """Settings of a test."""

    name: str = chz.field(doc="what it is called")
    learning_rate: float = chz.field(default=1e-4, doc="step size")
    num_steps: int = 10
    kind: Kind = Kind.SUMMARY
    kinds: list[Kind] = chz.field(default_factory=list)
    loss: Literal["ppo", "cispo"] = "ppo"
    note: str | None = None
    flag: bool = False
    rates: dict[str, float] = chz.field(default_factory=dict)
    words: tuple[str, ...] = ()
    examples_file: Path | None = chz.field(default=None, metadata={"must_exist": True})
    params_file: Path | None = None
    optimizer: Optimizer = chz.field(default_factory=Optimizer)

    @chz.validate
    def _positive(self) -> None:
        if self.num_steps <= 0:
            raise ValueError(f"num_steps={self.num_steps}: it takes at least one")


def load(*argv: str, layers: tuple[str, ...] = ("config_file", "params_file")) -> Config:
    return load_config(Config, list(argv), layers=layers)


def problems(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*argv)
    return caught.value.problems


@pytest.fixture
def yaml_file(tmp_path: Path):
    def write(text: str, name: str = "c.yaml") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path

    return write


def test_explicit_argument_wins_also_when_it_equals_the_default(yaml_file):
    path = yaml_file("{name: a, learning_rate: 3e-4, num_steps: 7}")
    config = load(f"config_file={path}", "learning_rate=1e-4")
    assert (config.learning_rate, config.num_steps, config.name) == (1e-4, 7, "a")


def test_layers_lie_in_their_order_whatever_the_order_of_arguments(yaml_file):
    low = yaml_file("{name: low, num_steps: 1, note: low}", "low.yaml")
    high = yaml_file("{name: high, num_steps: 2}", "high.yaml")
    config = load("name=top", f"params_file={high}", f"config_file={low}")
    assert (config.name, config.num_steps, config.note) == ("top", 2, "low")
    assert config.params_file == high


def test_a_config_file_may_name_the_layer_above_it(yaml_file):
    high = yaml_file("num_steps: 2", "high.yaml")
    low = yaml_file(f"{{name: low, num_steps: 1, params_file: {high}}}", "low.yaml")
    assert load(f"config_file={low}").num_steps == 2


def test_yaml_values_take_the_type_of_their_field(yaml_file):
    path = yaml_file("""
        name: "None"
        note: "None"
        learning_rate: 1e-3
        kind: qa-pairs
        kinds: [summary, QA_PAIRS]
        loss: cispo
        rates: {b: 1e-2, a: 2}
        words: ["a,b", c]
        optimizer: {learning_rate: 2e-5, betas: [1e-1, 0.5]}
    """)
    config = load(f"config_file={path}")
    assert config.learning_rate == 1e-3
    assert (config.name, config.note) == ("None", "None")
    assert config.kind is Kind.QA_PAIRS and config.kinds == [Kind.SUMMARY, Kind.QA_PAIRS]
    assert config.loss == "cispo"
    assert list(config.rates.items()) == [("b", 0.01), ("a", 2)]
    assert config.words == ("a,b", "c")
    assert config.optimizer == Optimizer(learning_rate=2e-5, betas=(0.1, 0.5))


def test_nested_values_of_different_layers_combine(yaml_file):
    path = yaml_file("{name: a, optimizer: {learning_rate: 2e-5, betas: [0.1]}}")
    config = load(f"config_file={path}", "optimizer.learning_rate=1e-3")
    assert config.optimizer == Optimizer(learning_rate=1e-3, betas=(0.1,))


def test_tuples_on_the_command_line_may_be_written_as_lists():
    assert load("name=a", 'words=["x","y,z"]').words == ("x", "y,z")
    assert load("name=a", "words=x,y").words == ("x", "y")


def test_a_stored_config_is_a_layer(tmp_path: Path):
    config = load("name=a", "kinds=qa-pairs", "words=x", "optimizer.betas=0.5", "num_steps=3")
    dump_yaml(tmp_path / "config.yaml", {**to_plain(config), "meta": {"git_revision": "0"}})
    assert load(f"config_file={tmp_path / 'config.yaml'}") == config


def test_all_problems_are_told_together(yaml_file, tmp_path: Path):
    path = yaml_file("""
        learning_rat: 1
        learning_rate: fast
        flag: 3
        kinds: [summary, novel]
        note: 5
        optimizer: {betas: x, momentum: 2}
    """)
    found = problems(
        f"config_file={path}",
        f"params_file={tmp_path / 'absent.yaml'}",
        f"examples_file={tmp_path / 'none.yaml'}",
        "num_steps=1e3",
        "kind=essay",
        "loss=mse",
        "foo",
        "--name=b",
    )
    expected = [
        ("foo", "key=value"),
        ("--name=b", "write name=b"),
        ("absent.yaml", "no such file"),
        ("learning_rat ", str(path), "Did you mean 'learning_rate'?"),
        ("learning_rate ", str(path), "expected float, got 'fast'"),
        ("flag ", "expected bool, got 3"),
        ("kinds ", "one of qa-pairs, summary", "novel"),
        ("note ", "expected str or None, got 5; put it in quotes"),
        ("optimizer.betas ", "tuple[float, ...]"),
        ("optimizer.momentum ", "unknown key"),
        ("examples_file (from command line)", "none.yaml: no such file or folder"),
        ("num_steps (from command line): expected int, got '1e3'",),
        ("kind (", "one of qa-pairs, summary, got 'essay'"),
        ("loss (", "one of ppo, cispo, got 'mse'"),
    ]
    for parts in expected:
        assert any(all(part in problem for part in parts) for problem in found), (parts, found)
    assert len(found) == len(expected), found


def test_missing_arguments_and_failed_validation_are_problems_too():
    assert problems() == ["missing: name=..."]
    assert problems("name=a", "num_steps=0") == ["num_steps=0: it takes at least one"]
    # an unknown key cannot spoil the validation, a value left out can
    assert len(problems("name=a", "num_steps=0", "x=1")) == 2
    assert len(problems("name=a", "num_steps=0", "learning_rate=x")) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "an empty file"),
        ("[1, 2]", "got list"),
        ("a: [1", "not valid YAML"),
        ("name: a\nname: b\n", "key 'name' is given twice"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_a_broken_file_is_named(yaml_file, text: str, words: str):
    path = yaml_file(text)
    (problem,) = problems(f"config_file={path}")
    assert str(path) in problem and words in problem


def test_a_config_file_cannot_name_itself(yaml_file):
    path = yaml_file("{name: a, config_file: other.yaml}")
    (problem,) = problems(f"config_file={path}")
    assert problem.startswith("config_file (from") and "unknown key" in problem


def test_yaml_text_never_becomes_code(yaml_file):
    path = yaml_file("{name: a, num_steps: 'os:getpid'}")
    (problem,) = problems(f"config_file={path}")
    assert "expected int, got 'os:getpid'" in problem


def test_help_names_each_source(yaml_file):
    path = yaml_file("{name: a, learning_rate: 3e-4, nme: x}")
    text = config_help(Config, [f"config_file={path}", "num_steps=4", "flag=perhaps"])
    assert f"(from {path})" in text and "(from command line)" in text and "(default)" in text
    assert "step size" in text and "config_file=PATH" in text
    assert "WARNING: nme" in text and "WARNING: flag" in text


def test_config_error_holds_its_problems():
    raise_problems([])
    with pytest.raises(ConfigError) as caught:
        raise_problems(["one", "two\nlines"])
    assert caught.value.problems == ["one", "two\nlines"]
    assert str(caught.value) == "2 problems:\n  - one\n  - two\n    lines"
    assert str(ConfigError("only")) == "only"


def test_an_async_main_is_run():
    async def main(config: Config) -> str:
        return config.name

    assert config_entrypoint(main, ["name=a"]) == "a"


def test_to_plain():
    plain = to_plain(
        {
            "kind": Kind.QA_PAIRS,
            "path": Path("a/b"),
            "tuple": (1, (2.5, None)),
            "set": {"b", "a"},
            "chz": Optimizer(),
            "number": np.float64(0.5),
            "array": np.arange(2),
            True: np.int64(3),
        }
    )
    assert plain == {
        "kind": "qa-pairs",
        "path": "a/b",
        "tuple": [1, [2.5, None]],
        "set": ["a", "b"],
        "chz": {"learning_rate": 1e-3, "betas": [0.9, 0.95]},
        "number": 0.5,
        "array": [0, 1],
        True: 3,
    }
    assert type(plain["number"]) is float
    with pytest.raises(TypeError, match="object has no plain form"):
        to_plain(object())


def test_yaml_round_trip_keeps_order_and_any_text(tmp_path: Path):
    path = tmp_path / "x.yaml"
    draw = random.Random(0)
    pieces = [
        "a",
        "b: c",
        "\n",
        " ",
        "\t",
        "é",
        "漢",
        "😀",
        "\\",
        '"',
        "'",
        "#",
        "- ",
        "\r",
        "%",
        "|",
    ]
    values = {
        f"k{i}": "".join(draw.choices(pieces, k=draw.randrange(7))) for i in range(400, 0, -1)
    }
    values |= {"z": "1e-4", "y": "no", "x": "2020-01-01", "w": "", "v": "~"}
    dump_yaml(path, values)
    loaded = load_yaml(path)
    assert loaded == values and list(loaded) == list(values)
    dump_yaml(path, {"text": "first line\nsecond\n"})
    assert path.read_text() == "text: |\n  first line\n  second\n"


SCRIPT = '''
import asyncio
import chz
from utils.config import ConfigError, config_entrypoint

@chz.chz(typecheck=True)
class Config:
    """What the script does."""
    steps: int = chz.field(default=3, doc="how many")

    @chz.validate
    def _check(self):
        if self.steps < 0:
            raise ValueError(f"steps={self.steps}: not below 0")

def main(config: Config) -> None:
    if config.steps == 13:
        raise ConfigError(["thirteen", "is unlucky"])
    if config.steps == 14:
        raise ValueError("a bug")
    print("steps", config.steps)

if __name__ == "__main__":
    config_entrypoint(main)
'''


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "script.py"
    path.write_text(SCRIPT)
    return path


def run(script: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_VERSION"}
    env["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(script), *argv]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=script.parent)


def test_command_line(script: Path):
    done = run(script, "steps=5")
    assert (done.returncode, done.stdout, done.stderr) == (0, "steps 5\n", "")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["foo"], ["'foo': arguments are written key=value"]),
        (["stepz=3", "steps=x"], ["2 problems", "Did you mean 'steps'", "expected int, got 'x'"]),
        (["config_file=absent.yaml"], ["config_file=absent.yaml: no such file"]),
        (["steps=-1"], ["steps=-1: not below 0"]),
        (["steps=13"], ["thirteen", "is unlucky"]),
    ],
)
def test_mistakes_end_with_2_and_no_traceback(script: Path, argv: list[str], words: list[str]):
    done = run(script, *argv)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Error: ") and "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_a_bug_keeps_its_traceback(script: Path):
    done = run(script, "steps=14")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_help_is_no_failure_and_fast(script: Path):
    started = time.perf_counter()
    done = run(script, "--help")
    assert time.perf_counter() - started < 2
    assert done.returncode == 0 and done.stderr == ""
    assert "What the script does." in done.stdout and "how many" in done.stdout


def test_utils_import_nothing_heavy():
    modules = ["config", "files", "runs", "progress", "tables", "report", "terminal_grids"]
    code = (
        f"import sys; {'; '.join(f'import utils.{m}' for m in modules)}; "
        "print([m for m in ('torch', 'matplotlib', 'numpy', 'tqdm', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr
