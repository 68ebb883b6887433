"""README.md and docs/ are true: commands are commands of these scripts, with settings that they
know; links, paths and examples of code lead somewhere.

uv run pytest tests/test_readme.py
"""

import contextlib
import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
from places import ROOT

PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "LOG.md", *sorted((ROOT / "docs").glob("*.md"))]
GAPS = r"\.\.\.|XXXX|[=\"]path/|=S\b"
# paths of the repository, as they are named in the text
OURS = r"`((?:scripts|training|generation|evaluation|utils|tests|benchmarks|docs)/[\w/.-]+\.\w+)`"


def text_of(page: Path) -> str:
    """With commands of several lines in one."""
    return re.sub(r" \\\n +", " ", page.read_text(encoding="utf-8"))


def code_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL)


def commands(page: Path) -> list[str]:
    """The commands that are written out, without those with gaps."""
    found = re.findall(
        r"uv run (?:--(?:with|extra) \S+ )?((?:scripts|benchmarks|docs)/\w+\.py[^`\n]*)",
        text_of(page),
    )
    lines = [line.replace("\\|", "|").partition(" #")[0].strip() for line in found]
    return [line for line in dict.fromkeys(lines) if not re.search(GAPS, line)]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader works: the shipped data, the documented domain, an experiment that ran."""
    for name in ("datasets", "evals"):
        shutil.copytree(ROOT / name, tmp_path / name)
    [code] = code_of(ROOT / "docs" / "own_domain.md")
    (tmp_path / "count_letter.py").write_text(code, encoding="utf-8")
    (tmp_path / "runs" / "icl" / "my_experiment").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    # under pytest, chz raises where users see a message
    monkeypatch.delenv("PYTEST_VERSION")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_valid(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {}
    for line in commands(page):
        script, *arguments = shlex.split(line)
        path = ROOT / script
        assert path.is_file(), f"{page.name}: {line}"
        if script.startswith("benchmarks/"):
            # those have no --check; tests/test_benchmarks.py runs them
            continue
        monkeypatch.setattr("sys.argv", [str(path), *arguments, "--check"])
        with contextlib.suppress(SystemExit):
            runpy.run_path(str(path), run_name="__main__")
        printed = capsys.readouterr()
        if "--help" in arguments:
            assert "settings" in printed.out.lower()
            continue
        told = json.loads(printed.out)["problems"] if printed.out else [printed.err]
        # files that only a user has; those of the repository are there
        told = [p for p in told if "no such file" not in p or "signs-off." in p]
        if told:
            wrong[line] = told
    if wrong:
        pytest.fail(json.dumps(wrong, indent=1))


def test_every_script_has_a_command_in_readme() -> None:
    named = set(re.findall(r"uv run scripts/(\w+)\.py", text_of(ROOT / "README.md")))
    assert named == {path.stem for path in (ROOT / "scripts").glob("*.py")}
    assert len(commands(ROOT / "README.md")) >= 12


def test_the_first_commands_have_no_gaps() -> None:
    """A reader copies the first commands of README and of the data pipeline as they stand."""
    readme = text_of(ROOT / "README.md")
    shown = re.findall(r"^    (.*uv run scripts/.*)$", readme, re.MULTILINE)
    assert len(shown) >= 5
    assert [line for line in shown if re.search(GAPS, line)] == []
    for line in shown:
        for name in re.findall(r"=((?:datasets|evals)/\S+)", line):
            assert (ROOT / name).is_file(), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists():
            wrong.append(target)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", text_of(path), re.MULTILINE)
            wrong += [target] * (anchor not in map(slug, headings))
    if page.name != "LOG.md":
        # the log speaks of what there was
        wrong += [name for name in re.findall(OURS, text) if not (ROOT / name).exists()]
    assert wrong == []


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_code_runs(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tiny_chat import save_chat_model

    model = save_chat_model(folder / "model")
    names: dict[str, object] = {}
    code = code_of(ROOT / page)
    assert code
    for block in code:
        assert '"embedded"' in block
        exec(compile(block.replace('"embedded"', repr(str(model))), page, "exec"), names)
    assert capsys.readouterr().out
    assert (folder / str(names["path"])).is_dir()
