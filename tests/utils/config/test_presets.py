"""Presets: found, refused, and a layer under files and the command line.

uv run pytest tests/utils/config/test_presets.py
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import chz
import pytest
from places import ROOT

from training.domains.registry import with_domain_fields
from utils.config import presets
from utils.config.entrypoint import (
    ConfigError,
    config_help,
    exit_on_config_error,
    given_value,
    load_config,
)
from utils.config.presets import list_presets, load_preset


@chz.chz(typecheck=True)
class Model:
    hidden_size: int = 64
    rate: float = 0.1


@chz.chz(typecheck=True)
class Config:
    name: str = "default"
    steps: int = 10
    domain: str = "arc"
    model: Model = chz.field(default_factory=Model)


@chz.chz(typecheck=True)
class Named:
    experiment: str = "none"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a preset; the working directory and the packaged folder are fresh ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(presets, "PACKAGED", tmp_path / "packaged")

    def write_preset(name: str, text: str, folder: str = "experiments") -> Path:
        path = tmp_path / folder / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write_preset


def load(*argv: str, script: str = "train") -> Config:
    layers = ("config_file", "params_file")
    return load_config(Config, list(argv), layers=layers, script=script)


def problems(*argv: str, script: str = "train") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*argv, script=script)
    return caught.value.problems


SMALL = """
    doc: a small one,
      quickly done
    script: [train, evaluate]
    sweep: {"model.hidden_size": [32, 64], steps: [[1, 2], [3]]}
    steps: 3
    model.rate: 1e-3
    model: {hidden_size: 32}
"""


def test_a_preset_is_the_lowest_layer(write, tmp_path: Path):
    write("small", SMALL)
    assert load("experiment=small") == Config(
        name="small", steps=3, model=Model(hidden_size=32, rate=1e-3)
    )
    file = write("c", "{steps: 4, model.hidden_size: 16}", folder="elsewhere")
    config = load("model.hidden_size=8", "experiment=small", f"config_file={file}")
    assert config == Config(name="small", steps=4, model=Model(hidden_size=8, rate=1e-3))
    assert load("experiment=small", "name=mine").name == "mine"


def test_what_a_preset_says_of_itself(write):
    path = write("small", SMALL)
    preset = load_preset("small", "evaluate")
    assert (preset.name, preset.path, preset.doc) == ("small", path, "a small one, quickly done")
    assert preset.scripts == ["train", "evaluate"]
    assert list(preset.sweep.items()) == [
        ("model.hidden_size", [32, 64]),
        ("steps", [[1, 2], [3]]),
    ]
    assert preset.values == {"steps": 3, "model.rate": "1e-3", "model": {"hidden_size": 32}}
    write("bare", "{steps: 1, script: train}")
    assert load_preset("bare", "train")[2:] == ("", ["train"], {"steps": 1}, {})
    write("any", "steps: 1")
    assert load_preset("any", "chat").scripts == []


def test_a_name_of_its_own_stays(write):
    write("small", "name: other")
    assert load("experiment=small").name == "other"


def test_the_working_directory_comes_before_the_project(write):
    write("small", "steps: 1", folder="packaged")
    write("large", "steps: 9", folder="packaged")
    assert load("experiment=small").steps == 1
    write("small", "steps: 2")
    assert load("experiment=small").steps == 2
    assert load("experiment=large").steps == 9


def test_an_unknown_preset_is_told_with_those_there_are(write):
    write("small", SMALL)
    write("other", "{doc: not for us, script: chat}")
    write("broken", "a: [")
    (problem,) = problems("experiment=smal")
    lines = problem.split("\n")
    assert lines[0].startswith("experiment=smal: unknown preset (experiments/smal.yaml is not")
    assert "Did you mean 'small'?; known of train:" in lines[0]
    assert lines[1:] == [
        "  broken  (cannot be read: experiments/broken.yaml)",
        "  small   a small one, quickly done",
    ]
    assert list(list_presets("chat")) == ["broken", "other"]
    assert list(list_presets()) == ["broken", "other", "small"]
    (problem,) = problems("experiment=experiments/small.yaml")
    assert "config_file=experiments/small.yaml" in problem


def test_without_presets_the_error_says_so(write):
    (problem,) = problems("experiment=small")
    assert problem.endswith("there are none of train")


def test_a_preset_of_other_scripts_is_refused(write):
    write("small", SMALL)
    assert problems("experiment=small", script="chat") == [
        "experiment=small: experiments/small.yaml is for train and evaluate, not for chat"
    ]


def test_mistakes_in_a_preset_are_told_with_all_others(write, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NOT_THERE", raising=False)
    write("wrong", "{stepz: 1, model: {rate: fast, width: 3}, name: '${oc.env:NOT_THERE}'}")
    found = problems("experiment=wrong", "steps=x")
    expected = [
        ("stepz (from preset wrong, experiments/wrong.yaml): unknown key", "'steps'"),
        ("model.rate (from preset wrong, experiments/wrong.yaml): expected float, got 'fast'",),
        ("model.width (from preset wrong", "unknown key of Model"),
        ("name (from preset wrong, experiments/wrong.yaml): environment variable NOT_THERE",),
        ("steps (from command line)",),
    ]
    for parts in expected:
        assert any(all(part in problem for part in parts) for problem in found), (parts, found)
    assert len(found) == len(expected), found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", ["got list"]),
        ("", ["an empty file"]),
        ("a: [", ["not valid YAML"]),
        ("{doc: [1], script: {a: 1}, sweep: 3}", ["doc (", "script (", "sweep ("]),
        ("script: [1]", ["script ("]),
        ("sweep: {a: 1}", ["sweep ("]),
        ("sweep: {a: []}", ["sweep ("]),
        ("1: 2", ["1 (from preset bad"]),
    ],
)
def test_a_malformed_preset_is_named(write, text: str, words: list[str]):
    write("bad", text)
    found = problems("experiment=bad", "steps=x")
    assert len(found) == len(words) + 1
    for word, problem in zip(words, found, strict=False):
        assert word in problem and "bad.yaml" in problem


def test_a_preset_is_chosen_on_the_command_line_only(write):
    write("small", SMALL)
    file = write("c", "{experiment: small, steps: 2}", folder="elsewhere")
    (problem,) = problems(f"config_file={file}")
    assert problem == (
        f"experiment (from {file}): a preset is chosen on the command line, experiment=small"
    )
    write("nested", "experiment: small")
    (problem,) = problems("experiment=nested")
    assert problem.startswith("experiment (from preset nested, experiments/nested.yaml)")


def test_a_field_named_experiment_is_just_a_field(write):
    write("small", SMALL)
    assert load_config(Named, ["experiment=small"]).experiment == "small"
    assert "experiment=NAME" not in config_help(Named, [])


def test_a_preset_may_name_the_files_above_it(write):
    file = write("c", "steps: 4", folder="elsewhere")
    write("small", f"{{steps: 3, name: a, config_file: {file}}}")
    assert load("experiment=small") == Config(name="a", steps=4)


def test_help_shows_the_source_and_the_presets(write):
    write("small", SMALL)
    write("other", "{doc: not for us, script: chat}")
    text = config_help(Config, ["experiment=small", "steps=5"], script="train")
    assert "model.hidden_size = 32 (from preset small)" in text and "5 (from command line)" in text
    assert "  small  a small one, quickly done\n" in text and "not for us" not in text
    assert "experiment=NAME" in text and "--check" in text
    assert "WARNING: experiment=none: unknown" in config_help(Config, ["experiment=none"])


def test_given_value_reads_presets(write):
    write("small", SMALL)
    assert given_value(Config, ["experiment=small"], "steps", script="train") == (
        3,
        "preset small",
    )
    assert given_value(Config, ["experiment=small"], "steps", script="chat") is None


@chz.chz(typecheck=True)
class Script:
    domain: str = "arc"
    num_steps: int = 1


def test_the_domain_of_a_preset_brings_its_fields(write, monkeypatch: pytest.MonkeyPatch):
    write("sums", "{script: test_presets, domain: gym, task: chain_sum, num_steps: 5}")

    def fields(*argv: str) -> set[str]:
        return set(chz.chz_fields(with_domain_fields(Script, argv, default="arc")))

    assert "task" in fields("experiment=sums") and "grid_format" not in fields("experiment=sums")
    assert "grid_format" in fields() and "grid_format" in fields("experiment=sums", "domain=arc")
    file = write("c", "domain: gsm8k", folder="elsewhere")
    assert "task" not in fields("experiment=sums", f"config_file={file}")
    monkeypatch.setenv("DOMAIN", "gym")
    assert "task" in fields("domain=${oc.env:DOMAIN}")
    target = with_domain_fields(Script, ["experiment=sums"], default="arc")
    config = load_config(target, ["experiment=sums", "num_steps=6"], script="test_presets")
    assert (config.task, config.num_steps) == ("chain_sum", 6)
    with pytest.raises(SystemExit), exit_on_config_error([]):
        with_domain_fields(Script, ["domain=chess"], default="arc")


def test_all_presets_of_the_project_are_well_formed():
    for path in sorted(presets.PACKAGED.glob("*.yaml")):
        preset = load_preset(path.stem)
        assert preset.doc, f"{path} lacks its line"
        for script in preset.scripts:
            assert (ROOT / "scripts" / f"{script}.py").is_file(), f"{path} names {script}"
            assert load_preset(path.stem, script).values


def run(script: str, *argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_VERSION"}
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *argv]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd)


def test_a_script_knows_its_presets_by_its_file(write, tmp_path: Path):
    write("sums", "{script: rl_loop, doc: adding, domain: gym, task: chain_sum}")
    done = run("rl_loop", "experiment=sums", "num_steps=7", "--check", cwd=tmp_path)
    checked = json.loads(done.stdout)
    assert done.returncode == 0 and checked["problems"] == []
    assert checked["config"]["task"] == "chain_sum" and checked["config"]["num_steps"] == 7
    done = run("sft", "experiment=sums", "--check", cwd=tmp_path)
    assert done.returncode == 2
    assert "is for rl_loop, not for sft" in json.loads(done.stdout)["problems"][0]
    done = run("rl_loop", "domain=chess", "--check", cwd=tmp_path)
    assert done.returncode == 2 and "chess" in json.loads(done.stdout)["problems"][0]
