"""A page of results in one file: no script, no address outside it, light and dark, wide and narrow.

Plots are matplotlib's SVG with its black replaced by the colour of the text around it.
"""

import dataclasses
import html
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib.figure
from matplotlib import rc_context

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, told apart by most eyes, on light ground and dark."""

_STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #f6f8fa; --quiet: #57606a; }
@media (prefers-color-scheme: dark) {
  :root { --line: #30363d; --soft: #161b22; --quiet: #8b949e; }
  body { background: #0d1117; color: #e6edf3; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
p, figcaption { color: var(--quiet); margin: 1rem 0 .3rem; }
h1, p, figcaption { overflow-wrap: anywhere; } figure { margin: 1rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th { background: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
th, td { white-space: nowrap; } .quiet { color: var(--quiet); }
svg { max-width: 100%; height: auto; } svg text { fill: currentColor; }
.broad svg { min-width: 36rem; }
pre { background: var(--soft); padding: .6rem; overflow-x: auto; font-size: .85rem; }
"""


_BROAD = 6.0  # inches, of a plot whose words nobody could read on a telephone


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under headings.

    Attributes:
      caption: what the numbers are.
      columns: headings; the first column is left-aligned, the others right-aligned.
      rows: as many cells as columns.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def html(self) -> str:
        """The table, which scrolls sideways where the page is narrow."""
        head = "".join(f"<th>{_safe(column)}</th>" for column in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in row) + "</tr>\n"
            for row in self.rows
        )
        return (
            f'<p>{_safe(self.caption)}</p>\n<div class="wide"><table>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
        )


@dataclasses.dataclass(frozen=True)
class Plot:
    """A picture, and what it shows: n, layer, protocol.

    Attributes:
      caption: what is to be seen.
      figure: of matplotlib.
    """

    caption: str
    figure: matplotlib.figure.Figure

    def html(self) -> str:
        """The picture inline; a broad one scrolls sideways where the page is narrow."""
        caption = _safe(self.caption)
        picture = svg_of(self.figure, self.caption)
        kind = "wide broad" if self.figure.get_figwidth() > _BROAD else "wide"
        return (
            f'<figure><div class="{kind}">{picture}</div>'
            f"<figcaption>{caption}</figcaption></figure>"
        )


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph, or a listing of what a machine said or was told."""

    text: str
    listing: bool = False

    def html(self) -> str:
        """The paragraph."""
        return f"<pre>{_safe(self.text)}</pre>" if self.listing else f"<p>{_safe(self.text)}</p>"


Part = Table | Plot | Text


def page(title: str, sections: Sequence[tuple[str, Sequence[Part]]]) -> str:
    """A whole page: a title, and sections of a heading and their parts."""
    body = "\n".join(
        f"<h2>{_safe(heading)}</h2>\n" + "\n".join(part.html() for part in parts)
        for heading, parts in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_safe(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n<h1>{_safe(title)}</h1>\n{body}\n</body></html>\n"
    )


PLAIN: dict[Any, Any] = {"text.parse_math": False}
"""Settings of matplotlib under which a name with ``$`` is drawn as it is."""


def new_figure(width: float, height: float) -> matplotlib.figure.Figure:
    """A figure of so many inches, outside pyplot's list, which would keep it for good."""
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def svg_of(figure: matplotlib.figure.Figure, salt: str) -> str:
    """The figure as inline SVG; ``salt`` keeps the names in it apart from other figures'."""
    out = io.StringIO()
    with rc_context({**PLAIN, "svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Names of groups are the same in every figure, and nothing points to them.
    text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", text)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    return re.sub(r"#000000", "currentColor", text)


def _safe(text: str) -> str:
    return html.escape(str(text))
