"""utils/terminal.py: printing where the encoding is small, and commands that can be pasted."""

import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chz
import pytest
import sft
from places import ROOT

from training.icl.train_report import closing_words as icl_closing_words
from training.loop import exit_on_interrupt
from utils.config.entrypoint import exit_with_help
from utils.llm.runs import exit_unfinished
from utils.runs.run_dir import RunDir
from utils.runs.tables import text_table
from utils.runs.terminal_grids import terminal_grid
from utils.terminal import command, print_anything, setting, wants_colour

SAID = "Grüße, 東京 \ud83d"


def printed(
    encoding: str, text: str, monkeypatch: pytest.MonkeyPatch, errors: str = "strict"
) -> str:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding, errors=errors)
    monkeypatch.setattr(sys, "stdout", stream)
    print_anything()
    print(text, flush=True)
    monkeypatch.undo()
    return buffer.getvalue().decode(encoding, "strict" if errors == "strict" else errors)


def test_what_cannot_be_encoded_is_shown_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    table = text_table(("name", "mean"), [(SAID, "1 ± 2"), ("x" * 99, "a → b")])
    assert printed("utf-8", table, monkeypatch) == f"{table}\n".replace("\ud83d", "\\ud83d")
    latin = printed("latin-1", table, monkeypatch).splitlines()
    assert latin[1].startswith("-----") and latin[2].startswith(r"Grüße, \u6771\u4eac \ud83d")
    assert latin[2].endswith("1 ± 2") and latin[3].endswith("~  a > b")
    ascii_lines = printed("ascii", table, monkeypatch).splitlines()
    assert ascii_lines[2].startswith(r"Gr\xfc\xdfe, \u6771") and ascii_lines[2].endswith("1 +- 2")
    # rules and shortened cells keep their width
    assert [len(line) for line in ascii_lines[::3]] == [
        len(line) for line in table.splitlines()[::3]
    ]
    # of the C locale, which would write bytes that nobody sent
    assert printed("ascii", "─", monkeypatch, errors="surrogateescape") == "-\n"
    # somebody asked for this
    assert printed("ascii", "─", monkeypatch, errors="ignore") == "\n"


def test_a_stdout_of_another_kind_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (None, io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        print_anything()


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@chz.chz
class Settings:
    x: int = chz.field(default=1, doc="some")


@pytest.mark.parametrize(
    ("stream", "variables", "coloured"),
    [
        (Screen, {}, True),
        (Screen, {"TERM": "xterm"}, True),
        (Screen, {"NO_COLOR": ""}, True),
        (Screen, {"NO_COLOR": "1"}, False),
        (Screen, {"NO_COLOR": "0", "TERM": "xterm"}, False),
        (Screen, {"TERM": "dumb"}, False),
        (io.StringIO, {"TERM": "xterm"}, False),
        (lambda: None, {"TERM": "xterm"}, False),
    ],
)
def test_colour_only_on_a_terminal_that_wants_it(
    stream: Callable[[], io.StringIO | None],
    variables: dict[str, str],
    coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    out = stream()
    monkeypatch.setattr(sys, "stdout", out)
    assert wants_colour() is coloured
    assert ("\x1b" in terminal_grid([[1]])) is coloured
    if out is not None:
        with pytest.raises(SystemExit):
            exit_with_help(Settings, ["--help"])
        assert "int  some" in out.getvalue()
        assert ("\x1b[1mx\x1b" in out.getvalue()) is ("\x1b" in out.getvalue()) is coloured


MAIN = f"""
import chz
from utils.config.entrypoint import config_entrypoint

@chz.chz
class Config:
    x: int = chz.field(default=1, doc="─ é")

def main(config: Config) -> None:
    print({"─ … é 東"!a})

config_entrypoint(main)
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "ascii:strict"])
def test_scripts_print_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_VERSION"}
    environment |= {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    sweep = [str(ROOT / "scripts" / "sweep.py"), "script=icl_train", "training.num_steps=2"]
    sweep += ['sweep={"seed":[0,1]}', "dry_run=true"]
    for given in (["-c", MAIN], ["-c", MAIN, "--help"], sweep):
        done = subprocess.run(
            [sys.executable, *given],
            capture_output=True,
            cwd=tmp_path,
            env=environment,
            timeout=60,
        )
        assert done.returncode == 0 and b"UnicodeEncodeError" not in done.stderr, done.stderr
        assert done.stdout.decode(encoding.partition(":")[0])
        if given is sweep:
            assert b"-----" in done.stdout


# --- commands

NASTY = [
    "plain/path",
    "my runs/a b",
    "it's",
    'say "hi"',
    "$HOME/x",
    "a;b|c&d",
    "(1)",
    "*",
    "ü",
    "~",
]


@pytest.mark.parametrize("text", NASTY)
def test_a_command_is_what_the_shell_makes_of_it(text: str) -> None:
    given = command("eval", eval_file=Path(text), checkpoint_paths=[text, "x"], model_name=None)
    assert shlex.split(given)[:4] == ["uv", "run", "scripts/eval.py", f"eval_file={text}"]
    (paths,) = shlex.split(given)[4:]
    assert paths.startswith("checkpoint_paths=[") and "x" in paths
    told = subprocess.run(
        f"printf %s {setting('name', text)}", shell=True, capture_output=True, check=True
    )
    assert told.stdout.decode() == f"name={text}"


UNUSUAL = [
    *("Grüße", "東京 x", "it's é", "back\\slash ü", "é9", "$HOME é"),
    *("tab\there", "two\nlines", "\udce9 of Latin-1"),
]
SHOW = """
import os, sys
from utils.terminal import print_anything, setting
print_anything()
for text in sys.argv[1:]:
    for stream in (sys.stdout, sys.stderr):
        print(setting("name", os.fsdecode(bytes.fromhex(text))), file=stream)
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_command_is_right_in_any_encoding(encoding: str) -> None:
    """What is shown is pasted into bash, which has to come to the very bytes of the file's name."""
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", SHOW, *(os.fsencode(t).hex() for t in UNUSUAL)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=True,
    )
    assert done.stdout == done.stderr
    # as it is where that can be shown
    assert ("Grüße".encode() in done.stdout) == (encoding == "utf-8")
    assert done.stdout.isascii() == (encoding != "utf-8")
    for text, line in zip(UNUSUAL, done.stdout.splitlines(), strict=True):
        pasted = subprocess.run(
            ["bash", "-c", b"printf %s " + line], capture_output=True, check=True
        )
        assert pasted.stdout == b"name=" + os.fsencode(text)


def test_a_command_of_what_the_file_system_cannot_hold_is_told_all_the_same() -> None:
    assert setting("name", "\ud83d") == r"$'name=\xed\xa0\xbd'"


def test_values_are_what_the_command_line_reads() -> None:
    assert setting("a", True) == "a=true" and setting("a", None) == "a=None"
    assert setting("a", 1e-4) == "a=0.0001" and setting("a", "") == "a="
    assert setting("a", ["x", "y z"]) == """'a=["x", "y z"]'"""
    assert setting("a", {"k": [1]}) == """'a={'"'"'k'"'"': [1]}'"""


def commands_in(text: str) -> list[list[str]]:
    return [shlex.split(found) for found in re.findall(r"uv run .*$", text, re.MULTILINE)]


class Given:
    """Settings as a script's config has them."""

    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)


def test_what_scripts_tell_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("my runs/first (1)")
    config: Any = Given(
        model_name="my models/tiny", backend="local", examples_file=Path("mine.examples.yaml")
    )
    text = sft.closing_words(config, f"{path}/000001", path / "report.html", 1.0)
    assert commands_in(text) == [
        [
            *("uv", "run", "scripts/chat.py", f"checkpoint_path={path}/000001"),
            "model_name=my models/tiny",
        ],
        [
            *("uv", "run", "scripts/eval.py", "eval_file=evals/XXXX.eval.yaml"),
            *("model_name=my models/tiny", f'checkpoint_paths=["{path}/000001"]'),
        ],
        [
            *("uv", "run", "scripts/export.py", f"checkpoint_path={path}/000001"),
            "output_dir=XXXX",
        ],
    ]
    run = RunDir.open("x", path, {})
    run.log_metrics(0, {"loss": 1.0})
    config = Given(runs_dir=Path("my runs"), name="a b", log_path=None)
    assert commands_in(icl_closing_words(path, config)) == [
        ["uv", "run", "scripts/icl_eval.py", "runs_dir=my runs", "name=a b"]
    ]
    config = Given(runs_dir=Path("runs/icl"), name="a", log_path=path)
    assert commands_in(icl_closing_words(path, config)) == [
        ["uv", "run", "scripts/icl_eval.py", f"log_path={path}"]
    ]
    for ends in (exit_unfinished(path), exit_on_interrupt(run)):
        with pytest.raises(SystemExit), ends:
            raise KeyboardInterrupt
        assert f"the same command with 'log_path={path}' goes on" in capsys.readouterr().err


def test_no_command_is_put_together_by_hand() -> None:
    """What is told to be typed goes through `command` or `setting`, which quote it."""
    told = re.compile(r"uv run scripts/[^\"\n]*\{[a-z_]|(with|give|write) \w+=\{[a-z_]")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for folder in ("scripts", "evaluation", "generation", "training", "utils")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1)
        if told.search(line)
    ]
    assert found == []
