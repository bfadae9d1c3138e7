"""A page of tables and plots: one HTML file that needs no other, and the same as Markdown."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from st_jv5.files import write_text

Cell = str | float | int | None

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem;
  color: #1a1a1a; background: #fff; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.875rem; overflow-wrap: normal; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
pre { background: #f4f4f4; padding: 0.75rem; overflow-x: auto; font-size: 0.875rem; }
figure { display: inline-block; margin: 0.5rem 0; width: 100%; max-width: 28rem; }
figure svg { width: 100%; height: auto; }
"""


@dataclass(frozen=True)
class Table:
    """Rows under a header; floats are scores, shown with one digit."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    bold: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of cells that stand out."""
    shades: dict[tuple[int, int], float] = field(default_factory=dict)
    """(row, column) -> how good, 0 to 1: a background, in HTML alone."""

    def markdown(self) -> str:
        """A pipe table."""
        lines = [_pipes(self.header), "|---" * len(self.header) + "|"]
        for y, row in enumerate(self.rows):
            cells = [
                f"**{shown(cell)}**" if (y, x) in self.bold else shown(cell)
                for x, cell in enumerate(row)
            ]
            lines.append(_pipes(cells))
        return "\n".join(lines)

    def html(self) -> str:
        """A table that scrolls inside its own box."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self.header)
        body = []
        for y, row in enumerate(self.rows):
            cells = []
            for x, cell in enumerate(row):
                text = escape(shown(cell))
                if (y, x) in self.bold:
                    text = f"<b>{text}</b>"
                share = self.shades.get((y, x))
                style = "" if share is None else f' style="background:{colour(share)}"'
                cells.append(f"<td{style}>{text}</td>")
            body.append("<tr>" + "".join(cells) + "</tr>")
        rows = "\n".join(body)
        return f'<div class="wide"><table><tr>{head}</tr>\n{rows}</table></div>'


NO_PLOT = 'No plot: it wants matplotlib (pip install "st-jv5[plots]").'


@dataclass(frozen=True)
class Plot:
    """A figure, kept as SVG; text stays text."""

    name: str
    """Name of its file beside the Markdown."""
    about: str
    """What it shows, for those who do not see it."""
    svg: str
    """Empty where matplotlib is not installed."""

    @classmethod
    def of(cls, figure: Any, name: str, about: str) -> Plot:
        """Take a matplotlib figure, and close it."""
        out = io.StringIO()
        figure.tight_layout()
        figure.savefig(out, format="svg", metadata={"Date": None})
        pyplot().close(figure)
        return cls(name, about, re.sub(r"^.*?(?=<svg)", "", out.getvalue(), flags=re.DOTALL))

    def html(self) -> str:
        """Inline, as wide as the page allows."""
        if not self.svg:
            return f"<p>{escape(NO_PLOT)}</p>"
        return f'<figure role="img" aria-label="{escape(self.about)}">{self.svg}</figure>'


@dataclass(frozen=True)
class Code:
    """Commands or settings, as they are."""

    text: str


Part = str | Table | Plot | Code


@dataclass
class Page:
    """A title and sections of parts."""

    title: str
    sections: list[tuple[str, list[Part]]] = field(default_factory=list)

    def add(self, heading: str, *parts: Part) -> None:
        """A section; one without parts is left out."""
        if parts:
            self.sections.append((heading, list(parts)))

    def markdown(self) -> str:
        """The page; plots are links to files beside it."""
        lines = [f"# {self.title}"]
        for heading, parts in self.sections:
            lines.append(f"## {heading}")
            for part in parts:
                if isinstance(part, Table):
                    lines.append(part.markdown())
                elif isinstance(part, Plot):
                    shown_as = f"![{part.about}]({part.name}.svg)" if part.svg else NO_PLOT
                    lines.append(shown_as)
                elif isinstance(part, Code):
                    lines.append(f"```\n{part.text}\n```")
                else:
                    lines.append(part)
        return "\n\n".join(lines) + "\n"

    def html(self) -> str:
        """The page; it asks for no other file."""
        body = [f"<h1>{escape(self.title)}</h1>"]
        for heading, parts in self.sections:
            body.append(f"<h2>{escape(heading)}</h2>")
            for part in parts:
                if isinstance(part, Code):
                    body.append(f"<pre>{escape(part.text)}</pre>")
                elif isinstance(part, str):
                    body.append(f"<p>{escape(part)}</p>")
                else:
                    body.append(part.html())
        content = "\n".join(body)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head>\n"
            f"<body>{content}</body></html>\n"
        )

    def write(self, folder: Path, name: str = "report") -> None:
        """``name.html``, ``name.md`` and the plots, as files."""
        folder.mkdir(parents=True, exist_ok=True)
        for _, parts in self.sections:
            for part in parts:
                if isinstance(part, Plot) and part.svg:
                    write_text(folder / f"{part.name}.svg", part.svg)
        write_text(folder / f"{name}.md", self.markdown())
        write_text(folder / f"{name}.html", self.html())


@cache
def pyplot() -> Any:
    """matplotlib's pyplot, set to write the same file each time; None where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "st_jv5", "font.size": 9}
    import matplotlib.pyplot

    return matplotlib.pyplot


def _pipes(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def shown(cell: Cell) -> str:
    """A cell's text."""
    if cell is None:
        return ""
    return f"{cell:.1f}" if isinstance(cell, float) else str(cell)


def colour(share: float) -> str:
    """White to green; dark text reads on all of it."""
    share = min(max(share, 0.0), 1.0)
    red, blue = (round(255 - share * step) for step in (100, 90))
    return f"rgb({red},{round(255 - 25 * share)},{blue})"


def lines(
    name: str,
    about: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    x: str,
    y: str = "main score, %",
    title: str = "",
    log: bool = False,
    faint: Mapping[str, Sequence[Sequence[tuple[float, float]]]] | None = None,
) -> Plot:
    """Label -> points ``(x, y)``, as lines with marks; ``faint`` draws thin ones in its colour."""
    if pyplot() is None:
        return Plot(name, about, "")
    figure, axis = pyplot().subplots(figsize=(4.6, 3.4))
    for label, points in curves.items():
        (line,) = axis.plot(*zip(*sorted(points), strict=True), marker="o", ms=4, label=label)
        for other in (faint or {}).get(label, ()):
            axis.plot(*zip(*sorted(other), strict=True), lw=0.7, alpha=0.6, color=line.get_color())
    if log:
        axis.set_xscale("log", base=2)
        ticks = sorted({point[0] for points in curves.values() for point in points})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45)
        axis.minorticks_off()
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title, fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    return Plot.of(figure, name, about)


def dots(
    name: str, about: str, groups: Mapping[str, Mapping[str, Sequence[float]]], x: str, title: str
) -> Plot:
    """Label -> line of the plot -> values: a dot for each, a colour per label."""
    if pyplot() is None:
        return Plot(name, about, "")
    labels = list(dict.fromkeys(line for values in groups.values() for line in values))
    figure, axis = pyplot().subplots(figsize=(4.6, 1 + 0.32 * len(labels)))
    for label, values in groups.items():
        found = [(value, labels.index(line)) for line, many in values.items() for value in many]
        axis.plot(*zip(*found, strict=True), "o", ms=5, alpha=0.8, label=label)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_xlabel(x)
    axis.set_title(title, fontsize=9)
    axis.grid(alpha=0.3)
    if len(groups) > 1:
        axis.legend(fontsize=7)
    return Plot.of(figure, name, about)
