"""The HTML report: whole, escaped, and without the network."""

import html.parser
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from utils.runs.grid_pictures import ArcPair, grid_svg, n_differing
from utils.runs.page import escape
from utils.runs.report import Report, line_plot

EVIL = "</pre><script>alert(1)</script><img src=x onerror=alert(1)> & \"'"


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not close."""

    VOID = ("meta", "img", "path", "use", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, name: str) -> int:
        return sum(tag == name for tag, _ in self.tags)


@pytest.fixture(scope="module")
def page_text() -> str:
    report = Report(EVIL, EVIL)
    report.heading(EVIL)
    report.paragraph(f"{EVIL}\n\nsecond")
    report.tiles([(EVIL, 1234567, EVIL), ("x", 0.123456), ("none", None)])
    report.table([EVIL, "n"], [[EVIL, 1], ["x", None]], caption=EVIL)
    figure = line_plot({"a": ([0, 1], [1.0, 2.0]), EVIL: ([0], [1.0])}, xlabel=EVIL, ylabel="y")
    report.figure(figure, EVIL)
    figure = Figure()
    figure.colorbar(figure.add_subplot().pcolormesh([[0, 1], [1, 0]]), label=EVIL)
    report.figure(figure, EVIL)
    with report.details(EVIL):
        report.pre(EVIL, EVIL)
    report.arc_pairs([ArcPair([[1]], [[2]], label=EVIL)], EVIL)
    return report.html()


def test_all_text_is_escaped(page_text: str):
    page = Page(page_text)
    assert page.count("script") == 0
    assert page.count("img") == 0
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("alert(1)") >= 12


def test_nothing_is_loaded(page_text: str):
    page = Page(page_text)
    assert page.count("link") == page.count("iframe") == 0
    # matplotlib's bar of colours, which the page's policy has to let through
    assert page.count("image") == 1 and "img-src data:" in page_text
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value and value.startswith(("data:image/png;base64,", "#")), (tag, name)
    assert not re.search(r"url\((?!#)|@import", page_text)
    addresses = set(re.findall(r"https?://[^\"'<> ]+", page_text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_ids_of_two_figures_differ():
    report = Report("x")
    for _ in range(2):
        report.figure(line_plot({"a": ([0, 1], [1, 2])}, xlabel="x", ylabel="y"))
    page = Page(report.html())
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    svgs = report.html().split("<svg")[1:]
    first, second = ({i for i in ids if i and f'id="{i}"' in svg} for svg in svgs)
    shared = {i for i in first & second if f"#{i}" in svgs[0]}
    assert len(svgs) == 2 and not shared


def test_a_report_is_the_same_each_time():
    pages = set()
    for _ in range(2):
        report = Report("x")
        report.figure(line_plot({"a": ([0, 1], [1, 2])}, xlabel="x", ylabel="y"))
        pages.add(report.html())
    assert len(pages) == 1


def test_values_are_shown_short():
    report = Report("x")
    report.tiles([("tokens", 1234567), ("score", 0.123456), ("cost", None)])
    report.table(["name", "score"], [["a", 0.123456], ["b", None]])
    text = report.html()
    assert ">1,234,567<" in text and text.count(">0.1235<") == 2 and ">-<" in text
    assert '<td class="number">-</td>' in text and "<td>a</td>" in text
    with pytest.raises(ValueError, match="has 1 cells for 2 columns"):
        report.table(["a", "b"], [["x"]])


def test_preformatted_text_stands_as_it_is():
    report = Report("x")
    report.pre("\n  first\n\ttab")
    # a browser drops one newline after <pre>
    assert "<pre>\n\n  first\n\ttab</pre>" in report.html()


def test_characters_no_page_may_hold_are_replaced(tmp_path: Path):
    assert escape("a\x00b\ud800c\x1b[0m\n") == "a\ufffdb\ufffdc\ufffd[0m\n"
    report = Report("x")
    report.pre("\udcff")
    report.write(tmp_path / "a" / "report.html")
    assert "\ufffd" in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")


def test_grid_colours_and_outlines():
    svg = grid_svg([[0, 1], [1, 9]])
    assert '<path fill="#0074d9" d="M1 0h1v1h-1zM0 1h1v1h-1z"/>' in svg
    assert "#000000" in svg and "#870c25" in svg and "wrong" not in svg
    svg = grid_svg([[0, 1], [1, 9]], [[0, 1], [2, 9]])
    assert '<path class="wrong" d="M0.09 1.09h.82v.82h-.82z"/>' in svg
    assert "wrong" not in grid_svg([[3]], [[3]])
    assert 'class="cross"' in grid_svg([[12, -1]])
    assert grid_svg([]).startswith("<svg")


def test_differing_cells_count_both_shapes():
    assert n_differing([[1, 2]], [[1, 3]]) == 1
    assert n_differing([[1, 2]], [[1], [2]]) == 2
    assert n_differing(None, [[1, 2]]) == 2
    assert n_differing([[1]], [[1]]) == 0


def test_pairs_say_how_they_went():
    report = Report("x")
    grid, other = [[1, 2]], [[1, 3]]
    report.arc_pairs(
        [
            ArcPair(grid, grid),
            ArcPair(grid, grid, grid),
            ArcPair(grid, other, grid),
            ArcPair(grid, [[1]], grid),
            ArcPair(grid, None, grid),
        ]
    )
    page = Page(report.html())
    for words in ("correct", "1 cell differs", "wrong shape", "no grid", "answer 1x2"):
        assert words in page.text
    assert page.text.count("output 1x2") == 1 and page.text.count("expected 1x2") == 4
    assert page.count("svg") == 2 + 3 + 3 + 3 + 2


def test_details_close_after_an_error():
    report = Report("x")
    with pytest.raises(KeyError), report.details("a"):
        raise KeyError
    Page(report.html())


def test_plots_leave_pyplot_alone():
    code = (
        "import sys; from utils.runs.report import line_plot; "
        "line_plot({'a': ([0, 1], [1, 2])}, xlabel='x', ylabel='y'); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
