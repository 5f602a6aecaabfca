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
.scroll { overflow-x: auto; } figure { margin: .6rem 0; } img { max-width: 100%; height: auto; }
.row { display: flex; flex-wrap: wrap; gap: .8rem; align-items: flex-start; }
.row figure { flex: 1 1 19rem; max-width: 34rem; }
.row figure:only-child { max-width: 100%; }
ul.warnings { list-style: none; padding: 0; } ul.warnings li { border-left: 4px solid #D55E00; background: #fdf3ec;
  padding: .35rem .8rem; margin: .35rem 0; max-width: 60rem; }
p.fine { border-left: 4px solid #009E73; background: #eef8f4; padding: .35rem .8rem; max-width: 60rem; }
"""


@dataclass
class Page:
    """Builds the page from top to bottom; every text given is escaped."""

    title: str
    parts: list[str] = field(default_factory=list)

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


def _cell(value: object, digits: int) -> str:
    if isinstance(value, (bool, np.bool_, str)):
        return str(value)
    if isinstance(value, (int, np.integer)):
        return f"{value:d}"
    if isinstance(value, (float, np.floating)):
        return "–" if not np.isfinite(value) else f"{value:.{digits}g}"
    return str(value)
