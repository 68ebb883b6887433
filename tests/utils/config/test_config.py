"""Config layers, their errors, and YAML in and out."""

import enum
import json
import logging
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
from places import ROOT

from utils.config.entrypoint import (
    COMMAND_LINE,
    ConfigError,
    check_config,
    config_entrypoint,
    config_help,
    dump_yaml,
    exit_on_config_error,
    given_value,
    held_log,
    load_config,
    load_yaml,
    problems_of,
    raise_problems,
    to_plain,
)
from utils.config.errors import AT_ONCE
from utils.runs.run_dir import RunDir


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
        ("note ", 'expected str or None, got 5; 5 is no text to YAML: put it in quotes, "5"'),
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


@chz.chz(typecheck=True)
class Shape:
    size: int = 1


@chz.chz(typecheck=True)
class Round(Shape):
    """Not one to choose: it has classes below it."""

    tolerance: float = 0.5


@chz.chz(typecheck=True)
class Circle(Round):
    colours: list[str] = chz.field(default_factory=list)
    texture: Path | None = None


@chz.chz(typecheck=True)
class Ellipse(Round):
    axes: tuple[float, ...] = (1.0, 2.0)
    inner: Optimizer = chz.field(default_factory=Optimizer)


@chz.chz(typecheck=True)
class Square(Shape):
    angle: float = 0.0
    depth: int | Literal["inf"] = "inf"
    inside: Shape | None = chz.field(default=None, blueprint_unspecified=Circle)


@chz.chz(typecheck=True)
class Drawing:
    shape: Shape = chz.field(blueprint_unspecified=Circle)
    extra: Shape | None = chz.field(default=None, blueprint_unspecified=Square)
    more: list[Shape] = chz.field(default_factory=list)
    rounded: Round = chz.field(default_factory=Round)
    optimizer: Optimizer = chz.field(default_factory=Optimizer)

    @property
    def experiment_dir(self) -> Path:
        return Path("runs") / type(self.shape).__name__


def draw(*argv: str) -> Drawing:
    return load_config(Drawing, list(argv), layers=("config_file", "params_file"))


def drawing_problems(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        draw(*argv)
    return caught.value.problems


@pytest.mark.parametrize(
    "text",
    [
        "{shape: Ellipse, shape.axes: [1e-3, 2], shape.tolerance: 1e-2, shape.size: 3}",
        "{shape: {type: Ellipse, axes: [1e-3, 2], tolerance: 1e-2, size: 3}}",
        "{shape.type: Ellipse, shape: {axes: [1e-3, 2], tolerance: 1e-2, size: 3}}",
        "{shape: {axes: [1e-3, 2], tolerance: 1e-2, size: 3, type: Ellipse}}",
    ],
)
def test_a_class_is_chosen_in_yaml(yaml_file, text: str):
    path = yaml_file(text)
    assert draw(f"config_file={path}").shape == Ellipse(axes=(1e-3, 2), tolerance=0.01, size=3)


@pytest.mark.parametrize("key", ["shape", "shape.type"])
def test_a_class_is_chosen_on_the_command_line(key: str):
    config = draw(f"{key}=Ellipse", 'shape.axes=["1e-3",2]', "shape.inner.learning_rate=1e-2")
    assert config.shape == Ellipse(axes=(1e-3, 2), inner=Optimizer(learning_rate=0.01))
    config = draw("shape.colours=red,blue", "shape.texture=a/b", "extra.depth=3")
    assert config.shape == Circle(colours=["red", "blue"], texture=Path("a/b"))
    assert config.extra == Square(depth=3)


def test_values_take_the_types_of_fields_that_one_class_alone_has(yaml_file):
    path = yaml_file("""
        shape: {texture: a/b, colours: [red], tolerance: 1e-3}
        extra: {type: Square, angle: 2e-1, depth: "4", inside: {type: Ellipse, axes: ["1e-1"]}}
        more: [{type: Square, depth: inf}, Circle, {type: Ellipse, size: "2"}]
    """)
    assert draw(f"config_file={path}") == Drawing(
        shape=Circle(texture=Path("a/b"), colours=["red"], tolerance=1e-3),
        extra=Square(angle=0.2, depth=4, inside=Ellipse(axes=(0.1,))),
        more=[Square(depth="inf"), Circle(), Ellipse(size=2)],
    )


def test_the_highest_layer_that_names_a_class_decides(yaml_file, caplog: pytest.LogCaptureFixture):
    low = yaml_file(
        "{shape: Ellipse, shape.axes: [1], shape.size: 5, shape.tolerance: 3}", "l.yaml"
    )
    high = yaml_file("{shape: {type: Square, angle: 1, size: 6}}", "h.yaml")
    files = (f"config_file={low}", f"params_file={high}")
    assert draw(files[0]).shape == Ellipse(axes=(1.0,), size=5, tolerance=3.0)
    assert not caplog.records
    assert draw(*files).shape == Square(angle=1.0, size=6)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    note = record.getMessage()
    for words in ("shape.axes, shape.tolerance", str(low), "Square", str(high)):
        assert words in note, note
    assert "size" not in note
    # back to the first class: what was written for it is there again
    assert draw(*files, "shape=Ellipse").shape == Ellipse(axes=(1.0,), size=6, tolerance=3.0)
    assert "shape.angle" in caplog.records[-1].getMessage()


def test_fields_written_for_the_default_class_are_left_out_too(yaml_file, caplog):
    path = yaml_file("{shape.colours: [red], shape.size: 2}")
    assert draw(f"config_file={path}", "shape=Square").shape == Square(size=2)
    assert "shape.colours" in caplog.text
    path = yaml_file("{extra: {type: Square, inside: {type: Ellipse, axes: [1]}}}")
    assert draw(f"config_file={path}", "extra=Ellipse").extra == Ellipse()
    assert draw(f"config_file={path}", "extra=None").extra is None


def test_a_field_that_no_class_has_is_unknown_in_every_layer(yaml_file):
    path = yaml_file("{shape: Ellipse, shape.axis: [1], shape.axes: [1]}")
    assert drawing_problems(f"config_file={path}", "shape=Square") == [
        f"shape.axis (from {path}): unknown key of Square."
    ]


def test_the_class_that_is_built_anyway_can_be_named(yaml_file):
    path = yaml_file("{more: [{size: '2'}, {type: Shape, size: 3}], rounded: Round}")
    config = draw(f"config_file={path}", "rounded.tolerance=2")
    assert config.more == [Shape(size=2), Shape(size=3)]
    assert config.rounded == Round(tolerance=2.0)
    assert draw("rounded=Circle").rounded == Circle()
    (problem,) = drawing_problems("rounded=Square")
    assert problem.endswith("unknown class 'Square'; allowed: Round, Circle, Ellipse")


def test_an_object_left_out_below_is_there_when_its_fields_are_set(yaml_file):
    path = yaml_file("{extra: null}")
    assert draw(f"config_file={path}").extra is None
    assert draw(f"config_file={path}", "extra.depth=2").extra == Square(depth=2)
    (problem,) = drawing_problems("extra=None", "extra.depth=2")
    assert problem.startswith("extra.depth (from command line): extra is None")


def test_mistakes_with_classes_are_told_together(yaml_file):
    path = yaml_file("""
        shape: {type: Elipse, axes: x, nothing: 1}
        extra: {type: Ellipse, axis: [1], angle: 2, inner.momentum: 1}
        more: [{type: Round}, 3]
        optimizer: {type: Square}
    """)
    found = drawing_problems(f"config_file={path}", "extra.size=big")
    expected = [
        ("shape (", str(path), "'Elipse'; allowed: Circle, Ellipse, Square", "'Ellipse'?"),
        ("more.0 (", "unknown class 'Round'; allowed:"),
        ("more.1 (", "unknown class 3"),
        ("optimizer (", "unknown class 'Square'; allowed: Optimizer"),
        ("extra.axis (", "unknown key of Ellipse. Did you mean 'extra.axes'?"),
        ("extra.angle (", "unknown key of Ellipse. Square has it: extra=Square."),
        ("extra.inner.momentum (", "unknown key of Optimizer"),
        ("extra.size (from command line): expected int, got 'big'",),
    ]
    for parts in expected:
        assert any(all(part in problem for part in parts) for problem in found), (parts, found)
    assert len(found) == len(expected), found


def test_a_key_given_twice_in_one_layer_is_a_problem(yaml_file):
    path = yaml_file("{shape.size: 2, shape: {size: 3}}")
    assert drawing_problems(f"config_file={path}") == [f"shape.size (from {path}): given twice"]
    assert drawing_problems("shape=Circle", "shape.type=Square") == [
        "shape (from command line): given twice"
    ]


def test_a_key_of_an_object_below_is_suggested():
    (problem,) = drawing_problems("learning_rate=1")
    assert "'optimizer.learning_rate'" in problem
    (problem,) = drawing_problems("...angel=1")
    assert problem.startswith("...angel (from command line): unknown key.")


def test_wildcards_reach_the_chosen_class():
    assert draw("...axes=3,4", "shape=Ellipse").shape == Ellipse(axes=(3.0, 4.0))


def test_yaml_names_classes_and_never_modules(yaml_file):
    name = f"{__name__}:Square"
    assert draw(f"shape={name}", "shape.angle=2").shape == Square(angle=2.0)
    (problem,) = drawing_problems(f"config_file={yaml_file(f'{{shape: {name!r}}}')}")
    assert "unknown class" in problem
    (problem,) = drawing_problems("shape=absent_module:Square")
    assert "unknown class 'absent_module:Square'" in problem and "import" in problem


@pytest.mark.parametrize(
    "config",
    [
        Drawing(
            shape=Circle(colours=["red"], texture=Path("a")), optimizer=Optimizer(betas=(0.1,))
        ),
        Drawing(
            shape=Ellipse(axes=(1e-5, 3.0)),
            extra=Circle(),
            more=[Square(), Ellipse(), Shape(size=2)],
        ),
        Drawing(shape=Square(depth=3, inside=Square(inside=Circle(size=9))), more=[Circle()]),
    ],
)
def test_a_stored_config_with_classes_is_a_layer(tmp_path: Path, config: Drawing):
    path = tmp_path / "config.yaml"
    dump_yaml(path, {**to_plain(config), "meta": {"git_revision": "0"}})
    assert draw(f"config_file={path}") == config
    stored = load_yaml(path)
    assert "type" not in stored and "type" not in stored["optimizer"]
    assert next(iter(stored["shape"].items())) == ("type", type(config.shape).__name__)
    assert "type" not in to_plain(config.shape)


def test_resuming_compares_the_classes_too(tmp_path: Path):
    config = Drawing(shape=Ellipse(), extra=Circle())
    RunDir.open("draw", tmp_path / "run", config).close()
    assert RunDir.open("draw", tmp_path / "run", config).resumed
    with pytest.raises(ConfigError) as caught:
        RunDir.open("draw", tmp_path / "run", Drawing(shape=Circle(), extra=Circle(size=2)))
    _, first, second = caught.value.problems
    assert first.startswith("shape.type: stored 'Ellipse', given 'Circle'; give shape.type=Ellipse")
    assert second.startswith("extra.size: stored 1, given 2")
    other = Drawing(shape=Circle())
    RunDir.open("draw", tmp_path / "run", other, resume_fields_ignored=("shape", "extra"))


# ----------------------------------------------------------------------------------- environment


@chz.chz
class Trained:
    model_name: str = "embedded"
    seed: int = 0


@chz.chz
class Stored(Trained):
    model_dir: str = "here"


def test_model_dir_is_model_name(yaml_file):
    assert load_config(Trained, ["model_dir=a/b"]) == Trained(model_name="a/b")
    assert load_config(Trained, ["model_dir=a", "model_name=a"]) == Trained(model_name="a")
    path = yaml_file("{model_dir: low, seed: 3}")
    file = f"config_file={path}"
    assert load_config(Trained, [file]) == Trained(model_name="low", seed=3)
    assert load_config(Trained, [file, "model_name=high"]) == Trained(model_name="high", seed=3)
    given = given_value(Trained, [file], "model_name")
    assert given is not None and given.value == "low"
    with pytest.raises(ConfigError) as error:
        load_config(Trained, ["model_dir=a", "model_name=b"])
    assert error.value.problems == [
        "model_dir=a and model_name=b (from command line) are one setting; keep one of them"
    ]
    # where a script has such settings of its own, and where it has no model
    assert load_config(Stored, ["model_dir=a"]) == Stored(model_dir="a")
    with pytest.raises(ConfigError, match=r"model_dir \(from command line\): unknown"):
        load_config(Optimizer, ["model_dir=a"])


def test_environment_variables_are_filled_in(yaml_file, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"WORD": "x", "STEPS": "12", "RATE": "1e-3", "EMPTY": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NOT_THERE", raising=False)
    path = yaml_file("""
        name: "${oc.env:WORD}-${oc.env:NOT_THERE,none}-${oc.env:EMPTY}-${other:WORD}-$WORD"
        num_steps: ${oc.env:STEPS}
        note: "${oc.env:NOT_THERE,null}"
        words: ["${oc.env:WORD}", "${oc.env:NOT_THERE, 'a b' }"]
        rates: {a: "${oc.env:RATE}"}
        optimizer: {learning_rate: "${oc.env:NOT_THERE,2e-3}"}
    """)
    config = load(f"config_file={path}", "learning_rate=${oc.env:RATE}", "kind=${oc.env:K,summary}")
    assert config.name == "x-none--${other:WORD}-$WORD"
    assert (config.num_steps, config.learning_rate, config.kind) == (12, 1e-3, Kind.SUMMARY)
    assert config.note is None and config.words == ("x", "a b") and config.rates == {"a": 1e-3}
    assert config.optimizer.learning_rate == 2e-3
    assert load("name=a", "note=${oc.env:NOT_THERE,null}").note is None
    assert load(f"config_file=${{oc.env:NOT_THERE,{path}}}").num_steps == 12


def test_defaults_may_name_further_variables(monkeypatch: pytest.MonkeyPatch):
    for name in ("ONE", "TWO"):
        monkeypatch.delenv(name, raising=False)
    nested = "name=<${oc.env:ONE,a-${oc.env:TWO}}>"
    (problem,) = problems(nested)
    assert "variable TWO is not set" in problem
    monkeypatch.setenv("TWO", "2")
    assert load(nested).name == "<a-2>"
    monkeypatch.delenv("TWO")
    # the default is not needed, so neither is its variable
    monkeypatch.setenv("ONE", "1")
    assert load(nested).name == "<1>"


def test_dotenv_is_read_and_the_environment_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "below").mkdir()
    (tmp_path / ".env").write_text("FROM_FILE=file\nBOTH=file\n")
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.setenv("BOTH", "environment")
    monkeypatch.delenv("FROM_FILE", raising=False)
    assert load("name=${oc.env:FROM_FILE} ${oc.env:BOTH}").name == "file environment"
    assert "FROM_FILE" not in os.environ


def test_unset_variables_are_told_with_all_problems(yaml_file, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NOT_THERE", raising=False)
    path = yaml_file("""
        name: "${oc.env:NOT_THERE}"
        rates: {a: 1, b: "${oc.env:NOT_THERE}"}
        optimizer: {learning_rate: "${oc.env:NOT_THERE}", betas: x}
        unknown: 1
    """)
    found = problems(f"config_file={path}", "note=${oc.env:NOT_THERE", "flag=${oc.env:1}")
    expected = [
        (f"name (from {path}): environment variable NOT_THERE is not set", "NOT_THERE,default}"),
        ("rates.b (from ", "NOT_THERE is not set"),
        ("optimizer.learning_rate (from ", "NOT_THERE is not set"),
        ("optimizer.betas (from ", "expected"),
        ("unknown (from ", "unknown key"),
        ("note (from command line): '${oc.env:NOT_THERE'",),
        ("flag (from command line): '${oc.env:1}'", "expected ${oc.env:NAME}"),
    ]
    for parts in expected:
        assert any(all(part in problem for part in parts) for problem in found), (parts, found)
    assert len(found) == len(expected), found
    assert len(problems("config_file=${oc.env:NOT_THERE}/x.yaml")) == 1


# ----------------------------------------------------------------------------------------- check


def test_check_tells_what_a_config_is_or_what_is_wrong(yaml_file):
    checked = check_config(Drawing, ["shape=Square", "shape.depth=3", "--check"])
    assert checked["problems"] == [] and checked["experiment_dir"] == "runs/Square"
    assert checked["config"]["shape"]["type"] == "Square" and checked["config"]["extra"] is None
    checked = check_config(Config, ["num_steps=x", "--check"])
    assert checked == {
        "problems": [
            "num_steps (from command line): expected int, got 'x'",
            "missing: name=...",
        ],
        "config": None,
        "experiment_dir": None,
        "inputs": {},
    }
    assert check_config(Config, ["name=a"])["experiment_dir"] is None


def test_check_holds_for_mistakes_found_before_the_entrypoint(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended, exit_on_config_error(["--check"]):
        raise ConfigError(["one", "two"])
    assert ended.value.code == 2
    assert json.loads(capsys.readouterr().out)["problems"] == ["one", "two"]
    with pytest.raises(SystemExit), exit_on_config_error(["domain=x"]):
        raise ConfigError("one")
    assert capsys.readouterr().out == ""


def test_given_value_names_the_highest_layer(yaml_file):
    low = yaml_file("{name: low, note: n}", "low.yaml")
    high = yaml_file("{name: high}", "high.yaml")
    layers = ("config_file", "params_file")
    argv = [f"config_file={low}", f"params_file={high}", "flag=true"]
    assert given_value(Config, argv, "name", layers=layers) == ("high", str(high))
    assert given_value(Config, argv, "note", layers=layers) == ("n", str(low))
    assert given_value(Config, argv, "flag", layers=layers) == ("true", COMMAND_LINE)
    assert given_value(Config, argv, "num_steps", layers=layers) is None
    assert given_value(Config, ["config_file=absent.yaml"], "name") is None


def test_help_names_each_source(yaml_file):
    path = yaml_file("{name: a, learning_rate: 3e-4, nme: x}")
    text = config_help(Config, [f"config_file={path}", "num_steps=4", "flag=perhaps"])
    text = " ".join(text.split())
    assert f"= 0.0003 (from {path})" in text and "= 4 (from command line)" in text
    assert "step size" in text and "config_file=PATH" in text
    assert "WARNING: nme" in text and "WARNING: flag" in text


def test_config_error_holds_its_problems():
    raise_problems([])
    with pytest.raises(ConfigError) as caught:
        raise_problems(["one", "two\nlines"])
    assert caught.value.problems == ["one", "two\nlines"]
    assert str(caught.value) == "2 problems:\n  - one\n  - two\n    lines"
    assert str(ConfigError("only")) == "only"


def test_an_error_of_settings_comes_alone(caplog: pytest.LogCaptureFixture):
    told = logging.getLogger("told")
    with pytest.raises(ConfigError), held_log():
        told.warning("before it")
        raise ConfigError("wrong")
    assert caplog.records == []
    with held_log():
        told.warning("of a run that begins")
        assert caplog.records == []
    with pytest.raises(KeyError), held_log():
        told.warning("of a bug")
        raise KeyError
    assert [record.message for record in caplog.records] == ["of a run that begins", "of a bug"]


def test_what_is_waited_for_is_told_at_once(caplog: pytest.LogCaptureFixture):
    told = logging.getLogger("told")
    caplog.set_level("INFO")
    with pytest.raises(ConfigError), held_log():
        told.info("before")
        with held_log():
            told.info("it may take a minute", extra=AT_ONCE)
            assert [record.message for record in caplog.records] == ["it may take a minute"]
        raise ConfigError("it cannot be had")
    assert [record.message for record in caplog.records] == ["it may take a minute"]


def test_failed_requests_to_the_hub_are_told_once_and_not_before_an_error(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    """The hub's library writes to stderr itself, and passes its records on."""
    pytest.importorskip("huggingface_hub")
    hub = logging.getLogger("huggingface_hub.utils._http")

    def unreachable() -> None:
        hub.warning("Retrying in 1s [Retry 1/5].")
        raise ValueError("no network")

    library = logging.getLogger("huggingface_hub")
    own = logging.StreamHandler()
    library.addHandler(own)
    try:
        assert problems_of(unreachable) == ["no network"]
        assert caplog.records == [] and capsys.readouterr().err == ""
        with held_log():
            hub.warning("Retrying")
        assert [record.message for record in caplog.records] == ["Retrying"]
        assert capsys.readouterr().err == ""
    finally:
        library.removeHandler(own)
    assert hub.propagate and hub.handlers == []


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
"""What the script does."""
import asyncio
import chz
from utils.config.entrypoint import ConfigError, config_entrypoint

@chz.chz(typecheck=True)
class Config:
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
        (["--help=judge"], ["'--help=judge': write --help judge"]),
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


def test_check_prints_one_line_and_does_not_run(script: Path):
    done = run(script, "steps=5", "--check")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("\n") == 1
    assert json.loads(done.stdout) == {
        "problems": [],
        "config": {"steps": 5},
        "experiment_dir": None,
        "inputs": {},
    }
    done = run(script, "steps=x", "foo", "--check")
    assert done.returncode == 2 and done.stdout.count("\n") == 1
    assert len(json.loads(done.stdout)["problems"]) == 2 and done.stderr == ""


def test_help_is_no_failure_and_fast(script: Path):
    started = time.perf_counter()
    done = run(script, "--help")
    assert time.perf_counter() - started < 2
    assert done.returncode == 0 and done.stderr == ""
    assert "What the script does." in done.stdout and "how many" in done.stdout


def test_utils_import_nothing_heavy():
    modules = ["config.entrypoint", "config.presets"]
    modules += [f"runs.{name}" for name in ("files", "run_dir", "progress", "tables", "report")]
    modules += ["runs.terminal_grids"]
    code = (
        f"import sys; {'; '.join(f'import utils.{m}' for m in modules)}; "
        "heavy = ('torch', 'matplotlib', 'numpy', 'tqdm', 'wandb', 'dotenv'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


# ---- what YAML and paths make of what is written


@chz.chz(typecheck=True)
class Ids:
    task_ids: list[str] = chz.field(default_factory=list)
    name: str = ""
    groups: dict[str, list[str]] = chz.field(default_factory=dict)
    folder: Path | None = None
    files: list[Path] = chz.field(default_factory=list)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        # as a number, as the octal number 195732, and as 1e3 with a point
        ("task_ids: [25094630, 007bbfb7]", '25094630 is no text to YAML: put it in quotes, "25094'),
        (
            "task_ids: [00576224, 1.0e+3, ok]",
            '; 00576224, 1.0e+3 is no text to YAML: put it in quotes, "00576224", "1.0e+3"',
        ),
        ("name: 007", '; 007 is no text to YAML: put it in quotes, "007"'),
        ("name: no", '; no is no text to YAML: put it in quotes, "no"'),
        ("groups: {a: [2020-01-01]}", '; 2020-01-01 is no text to YAML: put it in quotes, "2020'),
    ],
)
def test_what_yaml_takes_for_a_number_is_shown_as_written(
    line: str, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(line)
    with pytest.raises(ConfigError) as error:
        load_config(Ids, [f"config_file={path}"])
    [problem] = error.value.problems
    assert told in problem
    # the command line has nothing but text
    key, _, value = line.partition(": ")
    if key == "task_ids":
        given = value.strip("[]").replace(" ", "")
        assert load_config(Ids, [f"task_ids={given}"]).task_ids == given.split(",")


def test_bytes_that_are_no_text_are_refused() -> None:
    """As the command line has them of a file's name in Latin-1."""
    name = os.fsdecode("é".encode("latin-1"))
    with pytest.raises(ConfigError) as error:
        load_config(Ids, [f"folder=a/{name}", f"config_file={name}"])
    one, other = error.value.problems
    assert one == (
        "folder (from command line): 'a/\\udce9' has bytes that are no UTF-8; a run's files cannot "
        "name it, so give it another name"
    )
    assert other.startswith("config_file (from command line): '\\udce9' has bytes")


def test_home_folders_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.yaml").write_text("folder: ~/runs/a\nfiles: [~/b, c]\nname: ~/d\n")
    config = load_config(Ids, ["config_file=~/x.yaml"])
    assert config.folder == tmp_path / "runs" / "a"
    assert config.files == [tmp_path / "b", Path("c")]
    # no path
    assert config.name == "~/d"
    assert load_config(Ids, ["folder=~/b"]).folder == tmp_path / "b"
    with pytest.raises(ConfigError, match=r"folder .*~nobody-of-this-name/x"):
        load_config(Ids, ["folder=~nobody-of-this-name/x"])
