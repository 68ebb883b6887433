"""The frame and the looks of a report's page, and text for it."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence


def page_html(
    title: str,
    parts: Sequence[str],
    *,
    subtitle: str = "",
    status: str = "",
    reload_seconds: int | None = None,
) -> str:
    """The page of these parts, which are HTML; all else is escaped. `status` stands under the
    title, and a browser looks again every `reload_seconds`."""
    subtitle = f'<p class="subtitle">{escape(subtitle)}</p>' if subtitle else ""
    status = f'<p class="status">{escape(status)}</p>' if status else ""
    every = reload_seconds
    reload = "" if every is None else f'<meta http-equiv="refresh" content="{every}">\n'
    return _PAGE.format(
        title=escape(title),
        style=_STYLE,
        reload=reload,
        subtitle=subtitle + status,
        body="\n".join(parts),
    )


def escape(text: object) -> str:
    """`text` for HTML; control characters and lone surrogates, which no page may hold, become �."""
    clean = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", "\ufffd", str(text))
    return html.escape(clean)


# the policy forbids the page to load anything, whatever a sample may smuggle in; data: are the
# colour bars of matplotlib's SVG, which it draws as images
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
{reload}<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header><h1>{title}</h1>{subtitle}</header>
{body}
</main>
</body>
</html>
"""  # noqa: E501

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2530; --soft: #5c6876; --page: #fbfbfa; --card: #fff;
  --line: #dfe3e8; --code: #f3f4f5; --good: #1f7a4d; --bad: #b3402a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #9aa5b1; --page: #14181d;
  --card: #1b2027; --line: #323a44; --code: #1f252d; --good: #5cc48d; --bad: #ef8a72; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 32px 20px 72px; }
header { border-bottom: 1px solid var(--line); margin-bottom: 24px; padding-bottom: 14px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.2em 0 .6em; }
h3 { font-size: 1.05rem; margin: 1.6em 0 .5em; }
h1, h2, h3, p, figcaption, summary { overflow-wrap: anywhere; }
td { overflow-wrap: break-word; }
p { max-width: 72ch; margin: .6em 0; white-space: pre-line; }
.subtitle { color: var(--soft); margin: .35em 0 0; }
.status { display: inline-block; margin: .7em 0 0; padding: 2px 12px; border-radius: 999px;
  border: 1px solid var(--line); background: var(--card); font-size: .9rem; }
.tiles { display: grid; gap: 12px; margin: 18px 0;
  grid-template-columns: repeat(auto-fill, minmax(158px, 1fr)); }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 14px; }
.tile .label, .tile .note { color: var(--soft); font-size: .82rem; overflow-wrap: anywhere; }
.tile .value { font-size: 1.4rem; line-height: 1.4; font-weight: 600; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
figure { margin: 18px 0; }
figcaption { color: var(--soft); font-size: .86rem; margin-top: 6px; max-width: 80ch; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: 6px 20px 6px 0; max-width: 60ch; }
td { border-top: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.plot svg { display: block; width: 720px; max-width: 100%; height: auto;
  background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 8px; }
pre { background: var(--code); border: 1px solid var(--line); border-radius: 8px;
  margin: 8px 0 16px; padding: 12px 14px;
  font: .85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.prelabel { color: var(--soft); font-size: .82rem; margin-top: 12px; }
.prelabel + pre { margin-top: 3px; }
details { border: 1px solid var(--line); border-radius: 8px; background: var(--card);
  margin: 12px 0; }
summary { cursor: pointer; padding: 9px 14px; font-weight: 600; }
.inside { padding: 0 14px 6px; }
.inside > :first-child { margin-top: 4px; }
.cards { display: flex; flex-wrap: wrap; gap: 14px; align-items: flex-start; }
.arc { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 14px; max-width: 100%; }
.arc-head { display: flex; gap: 12px; justify-content: space-between; font-size: .88rem;
  margin-bottom: 8px; }
.mark { font-weight: 600; }
.right { color: var(--good); }
.wrong { color: var(--bad); }
.grids { display: flex; flex-wrap: wrap; gap: 10px; align-items: center; }
.gridbox { text-align: center; color: var(--soft); font-size: .76rem; }
.gridbox .none { width: 66px; line-height: 64px; border: 1px dashed var(--soft); }
.grid { display: block; max-width: 100%; height: auto; margin: 0 auto 3px; }
.arrow { color: var(--soft); font-size: 1.2rem; }
.grid .lines { fill: none; stroke: #6b7280; stroke-width: .05; }
.grid .cross { fill: none; stroke: #d00; stroke-width: .08; }
.grid .wrong-under { fill: none; stroke: #000; stroke-width: .22; }
.grid .wrong { fill: none; stroke: #fff; stroke-width: .11; }
@media print { details { border: 0; } .arc, .tile, .plot { break-inside: avoid; } }
"""
