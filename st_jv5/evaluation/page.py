"""A page of tables and plots: one HTML file that needs no other, and the same as Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from st_jv5.files import write_text

Cell = str | float | int | None

COLOURS: Mapping[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#15181d"),
    "ink": ("#1b1b1b", "#e6e6e6"),
    "quiet": ("#595959", "#a8adb5"),
    "rule": ("#d4d4d4", "#3a4048"),
    "panel": ("#f3f4f6", "#1f242b"),
    "noise": ("#e2e2e2", "#343a42"),
    "better": ("#0064b0", "#5db0ff"),
    "worse": ("#b35400", "#ff9f4a"),
    "teal": ("#007582", "#4fcbd8"),
    "purple": ("#7a3db8", "#c7a0ff"),
    "red": ("#b3214a", "#ff86a3"),
    "brown": ("#775028", "#d9ab7c"),
    "green": ("#1d7544", "#5fd098"),
    "gold": ("#806600", "#dcc04a"),
}
"""Name -> its colour on a light and on a dark screen. Plots are drawn in the light ones, and on a
page each becomes a variable of this name."""

FULL_SHADE = 10.0
"""A difference of so many points has the strongest colour."""


def _variables(place: int) -> str:
    return " ".join(f"--{name}: {both[place]};" for name, both in COLOURS.items())


STYLE = f"""
:root {{ color-scheme: light dark; {_variables(0)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(1)} }} }}
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 84rem; padding: 1rem;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; }}
h2 {{ font-size: 1.25rem; margin: 3rem 0 0.75rem; scroll-margin-top: 1rem; }}
a {{ color: var(--better); }}
h2 a {{ color: inherit; text-decoration: none; }} h2 a:hover {{ text-decoration: underline; }}
nav ul {{ display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; list-style: none; margin: 0.5rem 0;
  padding: 0; }}
p, li, figcaption {{ max-width: 75ch; }}
code, pre {{ background: var(--panel); font-size: 0.875rem; border-radius: 3px; }}
code {{ padding: 0 0.2em; }}
summary {{ cursor: pointer; }}
pre {{ padding: 0.75rem; white-space: pre-wrap; }}
.wide {{ overflow-x: auto; margin: 1.75rem 0; }}
table {{ border-collapse: collapse; font-size: 0.875rem; overflow-wrap: normal; }}
caption, figcaption {{ text-align: left; color: var(--quiet); font-size: 0.875rem; }}
caption {{ caption-side: top; padding-bottom: 0.4rem; max-width: 75ch; }}
caption span {{ position: sticky; left: 0; display: inline-block; max-width: min(75ch, 90vw); }}
th, td {{ padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--rule); text-align: left;
  vertical-align: top; }}
thead th {{ vertical-align: bottom; border-bottom-color: var(--quiet); }}
tbody th {{ font-weight: normal; }}
@media (max-width: 40rem) {{ tbody th {{ white-space: normal !important; min-width: 8rem; }} }}
.n {{ text-align: right; font-variant-numeric: tabular-nums; }}
td, tbody th {{ white-space: nowrap; }} .long {{ white-space: normal; min-width: 18rem; }}
tr > :first-child {{ position: sticky; left: 0; background: var(--paper); }}
.noise {{ background: var(--noise); }}
.better, .worse {{ background: color-mix(in srgb, var(--side) var(--strength), var(--paper)); }}
.better {{ --side: var(--better); }} .worse {{ --side: var(--worse); }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr));
  gap: 1.5rem; margin: 1.5rem 0; align-items: start; }}
figure {{ margin: 0; max-width: 36rem; }}
figure svg {{ width: 100%; height: auto; display: block; }}
"""


def shade(difference: float, low: float, high: float) -> float | None:
    """How a difference is coloured: by its size, and not at all inside noise.

    Args:
        difference: In points.
        low: Of its 95% interval; NaN where there is none.
        high: Of its 95% interval.

    Returns:
        -1 (worse) to 1 (better); 0, which is grey, where the interval holds 0; None, which is no
        shade, without an interval.

    Example:
        >>> shade(1.3, -0.2, 2.8), shade(5.0, 4.0, 6.0), shade(-20.0, -21.0, -19.0)
        (0.0, 0.5, -1.0)
    """
    if math.isnan(low) or math.isnan(high):
        return None
    if low <= 0 <= high:
        return 0.0
    return math.copysign(min(abs(difference) / FULL_SHADE, 1.0), low)


def _shade_attributes(value: float) -> tuple[str, str]:
    """Class and style of a shaded cell; text stays readable on the strongest."""
    if value == 0:
        return "noise", ""
    strength = 8 + 24 * abs(value)
    return ("better" if value > 0 else "worse"), f' style="--strength:{strength:.0f}%"'


LONG = 40
"""Characters of a cell from which on its column is wrapped."""
NUMBER = re.compile(r"[+\N{MINUS SIGN}-]?\d[\d.,]*%?(\s*[\[(].*)?")
"""A cell that is a number, and perhaps its interval."""


@dataclass(frozen=True)
class Table:
    """Rows under a header; floats are scores, shown with one digit."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    bold: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of cells that stand out."""
    shades: Mapping[tuple[int, int], float] = field(default_factory=dict)
    """(row, column) -> -1 to 1, as :func:`shade` says: a background, in HTML alone."""
    caption: str = ""
    """What the numbers are."""

    def markdown(self) -> str:
        """A pipe table under its caption."""
        lines = [f"{self.caption}\n"] if self.caption else []
        lines += [_pipes(self.header), "|---" * len(self.header) + "|"]
        for y, row in enumerate(self.rows):
            cells = [
                f"**{shown(cell)}**" if (y, x) in self.bold else shown(cell)
                for x, cell in enumerate(row)
            ]
            lines.append(_pipes(cells))
        return "\n".join(lines)

    def html(self) -> str:
        """A table that scrolls inside its own box, which the keyboard reaches."""
        kinds = [self._kind(x) for x in range(len(self.header))]
        head = "".join(
            f'<th scope="col"{_class(kind)}>{escape(name)}</th>' if name else "<td></td>"
            for name, kind in zip(self.header, kinds, strict=True)
        )
        body = "\n".join(
            "<tr>" + "".join(self._cell(y, x, kinds[x]) for x in range(len(row))) + "</tr>"
            for y, row in enumerate(self.rows)
        )
        caption = f"<caption><span>{marked(self.caption)}</span></caption>" if self.caption else ""
        name = escape(self.caption or ", ".join(filter(None, self.header)))
        return (
            f'<div class="wide" role="group" tabindex="0" aria-label="{name}"><table>{caption}'
            f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
        )

    def _kind(self, x: int) -> str:
        """A column's class: of numbers, of long texts, or neither."""
        cells = [shown(row[x]) for row in self.rows if row[x] not in (None, "", "-", "?")]
        if x > 0 and cells and all(NUMBER.fullmatch(cell) for cell in cells):
            return "n"
        return "long" if max(map(len, cells), default=0) > LONG else ""

    def _cell(self, y: int, x: int, kind: str) -> str:
        text = escape(shown(self.rows[y][x]))
        if (y, x) in self.bold:
            text = f"<b>{text}</b>"
        if x == 0:
            text = re.sub(r"(?<=[a-z])(?=[A-Z])", "<wbr>", text)  # TopicClustering on a phone
            return f'<th scope="row"{_class(kind)}>{text}</th>'
        side, style = _shade_attributes(self.shades[y, x]) if (y, x) in self.shades else ("", "")
        return f"<td{_class(kind, side)}{style}>{text}</td>"


NO_PLOT = 'No plot: it wants matplotlib (pip install "st-jv5[plots]").'


@dataclass(frozen=True)
class Plot:
    """A figure, kept as SVG; text stays text."""

    name: str
    """Name of its file beside the Markdown."""
    about: str
    """What it shows: the caption, and what those hear who do not see it."""
    svg: str
    """Empty where matplotlib is not installed."""

    def html(self) -> str:
        """Inline, in the colours of the page, as wide as its column."""
        if not self.svg:
            return f"<p>{escape(NO_PLOT)}</p>"
        svg = self.svg.replace("<svg ", f'<svg role="img" aria-label="{escape(self.about)}" ', 1)
        for name, (light, _) in COLOURS.items():
            svg = svg.replace(light, f"var(--{name})")
        return f"<figure>{svg}<figcaption>{escape(self.about)}</figcaption></figure>"


@dataclass(frozen=True)
class Code:
    """Commands or settings, as they are."""

    text: str
    summary: str = ""
    """What is shown of a long one until the reader opens it, in HTML."""

    def html(self) -> str:
        """A box, closed where it has a summary."""
        box = f"<pre>{escape(self.text)}</pre>"
        if not self.summary:
            return box
        return f"<details><summary>{escape(self.summary)}</summary>{box}</details>"


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
                    lines += [part.summary] if part.summary else []
                    lines.append(f"```\n{part.text}\n```")
                else:
                    lines.append(part)
        return "\n\n".join(lines) + "\n"

    def html(self) -> str:
        """The page; it asks for no other file, and is dark where the reader's screen is."""
        anchors = {heading: anchor(heading) for heading, _ in self.sections}
        links = "".join(
            f'<li><a href="#{place}">{escape(heading)}</a></li>'
            for heading, place in anchors.items()
        )
        body = []
        for heading, parts in self.sections:
            place = anchors[heading]
            body.append(f'<h2 id="{place}"><a href="#{place}">{escape(heading)}</a></h2>')
            body += _html_of(parts)
        nav = f'<nav aria-label="Sections"><ul>{links}</ul></nav>' if len(anchors) > 1 else ""
        content = "\n".join(body)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head>\n"
            f"<body><header><h1>{escape(self.title)}</h1>{nav}</header>\n"
            f"<main>{content}</main></body></html>\n"
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

    def write_html(self, path: str | Path) -> None:
        """One file of HTML."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(path), self.html())


def _html_of(parts: Iterable[Part]) -> Iterator[str]:
    """Parts one below the other; plots that follow each other stand side by side."""
    plots: list[str] = []
    for part in [*parts, None]:
        if isinstance(part, Plot):
            plots.append(part.html())
            continue
        if plots:
            yield f'<div class="plots">{"".join(plots)}</div>'
            plots = []
        if isinstance(part, str):
            yield f"<p>{marked(part)}</p>"
        elif part is not None:
            yield part.html()


def anchor(heading: str) -> str:
    """A heading's place in the page's address.

    Example:
        >>> anchor("Fewer dimensions, fewer bytes")
        'fewer-dimensions-fewer-bytes'
    """
    return re.sub(r"\W+", "-", heading.lower()).strip("-")


def marked(text: str) -> str:
    """A text as HTML; what stands between backticks is code.

    Example:
        >>> marked("take `base` < 2")
        'take <code>base</code> &lt; 2'
    """
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _class(*names: str) -> str:
    used = " ".join(filter(None, names))
    return f' class="{used}"' if used else ""


def _pipes(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def shown(cell: Cell) -> str:
    """A cell's text."""
    if cell is None:
        return ""
    return f"{cell:.1f}" if isinstance(cell, float) else str(cell)
