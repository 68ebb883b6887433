"""docs/picture.py: the command that makes README's picture, with a stand-in for the browser.

uv run pytest tests/test_picture.py
"""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from places import ROOT

from utils.config.entrypoint import config_entrypoint
from utils.runs.report import Report

# a browser that knows the two flags that matter, and writes down what it was asked for
BROWSER = """#!{python}
import sys
from PIL import Image
values = dict(a[2:].partition("=")[::2] for a in sys.argv[1:] if a.startswith("--"))
from urllib.parse import urlparse
page = open(urlparse(sys.argv[-1]).path, encoding="utf-8").read()
open({asked!r}, "w", encoding="utf-8").write(page)
if {works}:
    size = tuple(map(int, values["window-size"].split(",")))
    Image.effect_noise(size, 60).convert("RGB").save(values["screenshot"])
else:
    sys.exit("no display")
"""


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, in a folder with the report `my report.html`."""
    monkeypatch.setattr("sys.path", [*sys.path, str(ROOT / "docs")])
    monkeypatch.chdir(tmp_path)
    report = Report("a run", "of a test")
    for heading in ("Rewards & more", "Grids", "Answers"):
        report.heading(heading)
        report.paragraph(f"under {heading}")
    report.write("my report.html")
    import picture

    return picture


def browser(folder: Path, *, works: bool = True) -> Path:
    path = folder / "browser"
    path.write_text(
        BROWSER.format(python=sys.executable, asked=str(folder / "asked"), works=works),
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


def run(module: Any, folder: Path, *arguments: str, works: bool = True) -> None:
    given = ["report=my report.html", f"browser={browser(folder, works=works)}", *arguments]
    config_entrypoint(module.main, given)


def test_the_top_of_the_page_in_few_colours(
    picture: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(picture, tmp_path, "picture=out/it.png", "width=300", "height=200")
    data = (tmp_path / "out" / "it.png").read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (300, 200)
        assert image.mode == "P"
        colours = image.getcolors()
    assert colours is not None and len(colours) <= picture.COLOURS
    assert (tmp_path / "asked").read_text() == (tmp_path / "my report.html").read_text()
    assert "kB" in capsys.readouterr().out


def test_parts_are_left_out(picture: Any, tmp_path: Path) -> None:
    given = ("picture=it.png", "width=30", "height=20")
    run(picture, tmp_path, *given, 'without=["Rewards & more","Answers"]')
    page = (tmp_path / "asked").read_text()
    assert "under Grids" in page and page.rstrip().endswith("</html>")
    assert "under Rewards" not in page and "under Answers" not in page


def test_a_browser_that_fails_is_quoted(
    picture: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(picture, tmp_path, "picture=it.png", works=False)
    assert "made no picture of" in (told := capsys.readouterr().err) and "no display" in told
    assert not (tmp_path / "it.png").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["report=absent.html"], "absent.html: no such file"),
        (["browser=no-such-browser"], "no-such-browser found on this machine"),
        (["height=0"], "height=0: 1 or more"),
        (["without=Grid"], "without names 'Grid'; the report has Rewards & more, Grids, Answers"),
    ],
)
def test_what_is_wrong_is_said(
    picture: Any,
    tmp_path: Path,
    arguments: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run(picture, tmp_path, *arguments)
    assert told in capsys.readouterr().err


def test_the_picture_of_readme_is_small() -> None:
    path = ROOT / "docs" / "report.png"
    assert path.stat().st_size < 200_000
    with Image.open(path) as image:
        # GitHub shows README some 840 pixels wide
        assert 800 <= image.width <= 1200
