"""A picture of a run's report: the top of its page, as a browser shows it.

    uv run docs/picture.py report=runs/rl_loop/XXXX/report.html
    uv run docs/picture.py report=mine.html picture=mine.png height=900 browser=path/to/chrome
    uv run docs/picture.py report=mine.html 'without=["Self-edits and their rewards"]'

Writes docs/report.png, which README shows, or picture; an older one is replaced. It takes a
Chromium or Chrome on this machine, which nothing else here needs.
"""

import html
import io
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import chz

from utils.config.entrypoint import ConfigError, config_entrypoint, raise_problems
from utils.runs.files import atomic_write_bytes, expanded, shown_path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 120.0
# a page of text and grids has few colours
COLOURS = 256


@chz.chz(typecheck=True)
class Config:
    report: Path = chz.field(doc="a report.html of any script")
    picture: Path = chz.field(
        default=Path(__file__).with_name("report.png"), doc="the PNG to write"
    )
    width: int = chz.field(default=1040, doc="of the window, in pixels")
    height: int = chz.field(default=1200, doc="of the page's top that is shown, in pixels")
    without: list[str] = chz.field(
        default_factory=list, doc="headings of parts that are left out of the picture"
    )
    browser: str | None = chz.field(
        default=None, doc=f"program; default: the first there is of {', '.join(BROWSERS)}"
    )

    @chz.validate
    def _check(self) -> None:
        sizes = {"width": self.width, "height": self.height}
        raise_problems([f"{k}={v}: 1 or more is needed" for k, v in sizes.items() if v < 1])


def main(config: Config) -> None:
    report = expanded(config.report)
    if not report.is_file():
        raise ConfigError([f"report={report}: no such file; runs write report.html"])
    browser = find_browser(config.browser)
    page = without_parts(report.read_text(encoding="utf-8"), config.without)
    picture = few_colours(screenshot(browser, page, config))
    atomic_write_bytes(expanded(config.picture), picture)
    print(f"{shown_path(config.picture)}: {len(picture) / 1000:.0f} kB")


def find_browser(name: str | None) -> str:
    """The program's path; a ConfigError where there is none."""
    found = next(filter(None, map(shutil.which, [name] if name else BROWSERS)), None)
    if found is None:
        tried = name or f"none of {', '.join(BROWSERS)}"
        raise ConfigError(
            [f"browser: {tried} found on this machine; install Chromium or give browser=PATH"]
        )
    return found


def without_parts(page: str, headings: Sequence[str]) -> str:
    """The page without these headings and what stands under them; a ConfigError names what it has
    not."""
    body, end, foot = page.partition("</main>")
    head, *parts = re.split("(?=<h2>)", body)
    names = [html.unescape(part[len("<h2>") : part.index("</h2>")]) for part in parts]
    raise_problems(
        [
            f"without names {heading!r}; the report has {', '.join(names)}"
            for heading in headings
            if heading not in names
        ]
    )
    kept = [part for name, part in zip(names, parts, strict=True) if name not in headings]
    return "".join([head, *kept, end, foot])


def screenshot(browser: str, page: str, config: Config) -> bytes:
    """A PNG of the page's top; a ConfigError with the browser's words where it made none."""
    with tempfile.TemporaryDirectory() as folder:
        source, shot = Path(folder) / "page.html", Path(folder) / "shot.png"
        source.write_text(page, encoding="utf-8")
        command = [
            *(browser, "--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
            *(f"--user-data-dir={folder}/profile", f"--screenshot={shot}"),
            f"--window-size={config.width},{config.height}",
            source.as_uri(),
        ]
        if os.name == "posix" and os.geteuid() == 0:
            # Chromium's sandbox refuses root; the page is our own and may load nothing
            command.insert(1, "--no-sandbox")
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        if not shot.is_file():
            said = done.stderr.strip() or "nothing"
            raise ConfigError(
                [f"browser: {browser} made no picture of {config.report}; it said: {said}"]
            )
        return shot.read_bytes()


def few_colours(png: bytes) -> bytes:
    """The same picture with a palette, which takes a third of the bytes."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        palette = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    out = io.BytesIO()
    palette.save(out, format="PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    config_entrypoint(main)
