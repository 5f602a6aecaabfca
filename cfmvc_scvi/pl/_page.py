"""One self-contained HTML page of texts, tables and figures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cfmvc_scvi.pl._style import root_figure

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #22262b; background: #fff; margin: 0 auto; padding: 1.5rem;
       max-width: 72rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-top: .8rem;
     border-top: 1px solid #d5d9de; } h3 { font-size: 1.02rem; margin: 1.4rem 0 .3rem; }
p.note, figcaption { color: #555c65; font-size: .88rem; margin: .3rem 0; max-width: 60rem; }
table { border-collapse: collapse; font-size: .86rem; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .6rem; text-align: right; border-bottom: 1px solid #e4e7ea; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
thead th { border-bottom: 2px solid #9aa1a9; vertical-align: bottom; }
.scroll { overflow-x: auto; } figure { margin: .6rem 0; } img, svg { max-width: 100%; height: auto; }
.row { display: flex; flex-wrap: wrap; gap: .8rem; align-items: flex-start; }
.row figure { flex: 1 1 19rem; max-width: 34rem; }
.row figure:only-child { max-width: 100%; }
ul.warnings { list-style: none; padding: 0; } ul.warnings li { border-left: 4px solid #D55E00; background: #fdf3ec;
  padding: .35rem .8rem; margin: .35rem 0; max-width: 60rem; }
th.sortable { cursor: pointer; } th.sortable:hover { text-decoration: underline; }
input.search { font: inherit; padding: .25rem .5rem; width: 20rem; max-width: 100%; } td.left { text-align: left; }
p.fine { border-left: 4px solid #009E73; background: #eef8f4; padding: .35rem .8rem; max-width: 60rem; }
"""

#: Sorts a table by the column that is clicked on, and hides the rows without the words that are looked for.
_SCRIPT = """
for (const box of document.querySelectorAll("div.searchable")) {
  const body = box.querySelector("tbody"), rows = [...body.rows], input = box.querySelector("input");
  const words = rows.map(row => row.textContent.toLowerCase()), count = box.querySelector("span.count");
  const value = cell => cell.dataset.v === undefined ? cell.textContent : +cell.dataset.v;
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase().split(/\\s+/);
    let n = 0;
    rows.forEach((row, i) => { row.hidden = !wanted.every(word => words[i].includes(word)); n += !row.hidden; });
    count.textContent = n + " of " + rows.length;
  });
  let last = -1, sign = 1;
  box.querySelectorAll("th").forEach((head, i) => head.addEventListener("click", () => {
    sign = i === last ? -sign : (rows.some(row => row.cells[i].dataset.v !== undefined) ? -1 : 1);
    last = i;
    const keyed = rows.map(row => [value(row.cells[i]), row]);
    keyed.sort(([a], [b]) => a === b ? 0 : a !== a ? 1 : b !== b ? -1 : (a < b ? -sign : sign));
    body.append(...keyed.map(pair => pair[1]));
  }));
}
"""


@dataclass
class Page:
    """Builds the page from top to bottom; every text given is escaped."""

    title: str
    parts: list[str] = field(default_factory=list)
    has_script: bool = False

    def heading(self, text: str, level: int = 2) -> None:
        """Add a heading of a section (level 2) or of a part of a section (level 3)."""
        self.parts.append(f"<h{level}>{html.escape(text)}</h{level}>")

    def text(self, text: str, *, note: bool = False) -> None:
        """Add a paragraph; a note is set smaller."""
        opening = '<p class="note">' if note else "<p>"
        self.parts.append(f"{opening}{html.escape(text)}</p>")

    def warnings(self, messages: Sequence[str], nothing: str) -> None:
        """Add a list of warnings, or the sentence ``nothing`` where there are none."""
        if not messages:
            self.parts.append(f'<p class="fine">{html.escape(nothing)}</p>')
            return
        items = "".join(f"<li>{html.escape(message)}</li>" for message in messages)
        self.parts.append(f'<ul class="warnings">{items}</ul>')

    def table(self, table: pd.DataFrame, *, digits: int = 3) -> None:
        """Add a table with its index; numbers are rounded to ``digits`` significant digits."""
        flat = table.reset_index()
        head = "".join(f"<th>{html.escape(str(name))}</th>" for name in flat.columns)
        rows = (
            "<tr>" + "".join(f"<td>{html.escape(_cell(value, digits))}</td>" for value in row) + "</tr>"
            for row in flat.itertuples(index=False)
        )
        self.parts.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        )

    def searchable(self, table: pd.DataFrame, *, digits: int = 3) -> None:
        """Add a table that can be sorted by clicking on a column and searched for words, by a script in the page."""
        flat = table.reset_index()
        head = "".join(f'<th class="sortable">{html.escape(str(name))}</th>' for name in flat.columns)
        rows = "".join(
            "<tr>" + "".join(_typed_cell(value, digits) for value in row) + "</tr>"
            for row in flat.itertuples(index=False)
        )
        self.parts.append(
            f'<div class="searchable"><p><input class="search" type="search" placeholder="words to look for" '
            f'aria-label="words to look for"> <span class="count">{len(flat)} of {len(flat)}</span></p>'
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></div>'
        )
        self.has_script = True

    def drawings(self, *drawn: tuple[Axes | Figure, str]) -> None:
        """Add figures as vector graphics beside each other, each with its caption, and close them."""
        self.parts.append(f'<div class="row">{"".join(_drawing(*one) for one in drawn)}</div>')

    def figures(self, *drawn: tuple[Axes | Figure, str]) -> None:
        """Add figures beside each other, each with its caption, and close them."""
        self.parts.append(f'<div class="row">{"".join(_figure(*one) for one in drawn)}</div>')

    def render(self) -> str:
        """Return the page as HTML."""
        title = html.escape(self.title)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
            + "\n".join(self.parts)
            + (f"\n<script>{_SCRIPT}</script>" if self.has_script else "")
            + "\n</body>\n</html>\n"
        )


def _figure(drawn: Axes | Figure, caption: str) -> str:
    figure = drawn if isinstance(drawn, Figure) else root_figure(drawn)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    text = html.escape(caption, quote=True)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _drawing(drawn: Axes | Figure, caption: str) -> str:
    """A figure as SVG that is part of the page; text stays text."""
    figure = drawn if isinstance(drawn, Figure) else root_figure(drawn)
    buffer = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": caption}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    svg = buffer.getvalue()
    text = html.escape(caption, quote=True)
    return f'<figure role="img" aria-label="{text}">{svg[svg.index("<svg") :]}<figcaption>{text}</figcaption></figure>'


def _typed_cell(value: object, digits: int) -> str:
    """A cell that the script sorts as the number it holds, or as text."""
    text = html.escape(_cell(value, digits))
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        return f'<td data-v="{float(value):.6g}">{text}</td>'
    return f'<td class="left">{text}</td>'


def _cell(value: object, digits: int) -> str:
    if isinstance(value, (bool, np.bool_, str)):
        return str(value)
    if isinstance(value, (int, np.integer)):
        return f"{value:d}"
    if isinstance(value, (float, np.floating)):
        return "–" if not np.isfinite(value) else f"{value:.{digits}g}"
    return str(value)
