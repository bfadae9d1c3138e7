"""Plots of a page, drawn by matplotlib: scores over something, means with their intervals, losses.

A colour means one thing wherever it stands: an adapter's tasks have that adapter's, a difference is
``better``, ``worse`` or ``noise``, and everything else is shown by place, mark and dash.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import cycle
from typing import Any, NamedTuple

from st_jv5.evaluation.page import COLOURS, Plot, shade

Points = Sequence[tuple[float, float]]
Curves = Mapping[str, Points]
"""Label -> points ``(x, y)``."""

INK, QUIET, RULE, PAPER = (COLOURS[name][0] for name in ("ink", "quiet", "rule", "paper"))
OF_ADAPTER = {
    "retrieval": "teal",
    "text-matching": "purple",
    "clustering": "red",
    "classification": "brown",
}
OTHERS = ("ink", "green", "gold", "quiet")
"""Colours of labels that are no adapter's, in their order, beside marks and dashes."""
MARKS = "osD^vP*X"
DASHES = ("-", "--", ":", "-.")
INCHES = 4.6
"""Width of a plot: with letters of 9 points, as wide as a phone's screen shows them well."""


class Bar(NamedTuple):
    """A value with its 95% interval, whose ends are NaN where nothing is known of it."""

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan


def lines(
    name: str,
    about: str,
    curves: Curves,
    x: str,
    y: str = "main score, %",
    title: str = "",
    log: bool = False,
    faint: Mapping[str, Sequence[Points]] | None = None,
) -> Plot:
    """Lines with marks; ``faint`` draws thin ones in its label's colour."""
    if pyplot() is None:
        return Plot(name, about, "")
    figure, axis = pyplot().subplots(figsize=(INCHES, 3.4))
    styles = zip(colours_of(curves), cycle(MARKS), cycle(DASHES), strict=False)
    for (label, points), (colour, mark, dash) in zip(curves.items(), styles, strict=False):
        style = {"color": colour, "marker": mark, "ls": dash}
        axis.plot(*zip(*sorted(points), strict=True), ms=4, label=label, **style)
        for other in (faint or {}).get(label, ()):
            axis.plot(*zip(*sorted(other), strict=True), lw=0.7, alpha=0.6, color=colour)
    if log:
        _log_axis(axis, [point[0] for points in curves.values() for point in points])
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title, loc="left")
    figure.legend(loc="outside lower center", ncols=2)
    return _plot(figure, name, about)


def dots(
    name: str, about: str, groups: Mapping[str, Mapping[str, Sequence[float]]], x: str, title: str
) -> Plot:
    """Label -> line of the plot -> values: a dot for each, a colour per label."""
    if pyplot() is None:
        return Plot(name, about, "")
    labels = list(dict.fromkeys(line for values in groups.values() for line in values))
    figure, axis = pyplot().subplots(figsize=(INCHES, 1 + 0.32 * len(labels)))
    for (label, values), colour in zip(groups.items(), colours_of(groups), strict=True):
        found = [(value, labels.index(line)) for line, many in values.items() for value in many]
        axis.plot(*zip(*found, strict=True), "o", ms=5, alpha=0.8, label=label, color=colour)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_xlabel(x)
    axis.set_title(title, loc="left")
    if len(groups) > 1:
        figure.legend(loc="outside lower center", ncols=2)
    return _plot(figure, name, about)


def intervals(
    name: str,
    about: str,
    panels: Mapping[str, Sequence[Bar]],
    x: str,
    is_difference: bool = False,
) -> Plot:
    """A panel under the other, in each a row per value: a dot, and a whisker for its interval.

    Args:
        name: Of the plot.
        about: What it shows.
        panels: Title -> rows; of a panel without rows nothing is drawn.
        x: What the values are.
        is_difference: Whether a row is coloured as better, worse or noise, beside a line at 0.
    """
    panels = {title: bars for title, bars in panels.items() if bars}
    if pyplot() is None or not panels:
        return Plot(name, about, "")
    heights = [len(bars) + 1.2 for bars in panels.values()]
    figure, axes = pyplot().subplots(
        len(panels), 1, sharex=True, squeeze=False, figsize=(INCHES, 0.7 + 0.24 * sum(heights)),
        height_ratios=heights,
    )  # fmt: skip
    for axis, (title, bars) in zip(axes[:, 0], panels.items(), strict=True):
        if is_difference:
            axis.axvline(0, color=QUIET, lw=0.8)
        for y, bar in enumerate(bars):
            colour = verdict_colour(bar) if is_difference else INK
            if not math.isnan(bar.low):
                axis.plot([bar.low, bar.high], [y, y], color=colour, lw=1.6, solid_capstyle="butt")
            axis.plot(bar.value, y, "o", ms=5, color=colour)
        axis.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axis.set_ylim(len(bars) - 0.4, -0.6)
        axis.set_title(title, loc="left")
    axes[-1, 0].set_xlabel(x)
    return _plot(figure, name, about)


def verdict_colour(bar: Bar) -> str:
    """Colour of a difference: none inside its interval.

    Example:
        >>> verdict_colour(Bar("", 1.3, -0.2, 2.8)) == QUIET
        True
    """
    side = shade(bar.value, bar.low, bar.high)
    return COLOURS["better" if side > 0 else "worse"][0] if side else QUIET


def against(
    name: str, about: str, panels: Mapping[str, Mapping[str, tuple[float, Bar]]], x: str
) -> Plot:
    """Panel -> who -> a cost or a speed, named by ``x``, and the score at it."""
    panels = {title: who for title, who in panels.items() if who}
    if pyplot() is None or not panels:
        return Plot(name, about, "")
    figure, axes = pyplot().subplots(
        len(panels), 1, sharex=True, squeeze=False, figsize=(INCHES, 0.8 + 1.7 * len(panels))
    )
    for axis, (title, who) in zip(axes[:, 0], panels.items(), strict=True):
        for number, (label, (value, bar)) in enumerate(who.items()):
            colour = (INK, QUIET)[number % 2]
            if not math.isnan(bar.low):
                axis.plot([value, value], [bar.low, bar.high], color=colour, lw=1)
            mark = MARKS[number % len(MARKS)]
            axis.plot(value, bar.value, mark, ms=6, color=colour, label=label)
        axis.set_title(title, loc="left")
        axis.set_ylabel("mean score, %")
    found = [value for who in panels.values() for value, _ in who.values()]
    _log_axis(axes[-1, 0], [float(f"{value:.3g}") for value in found])
    axes[-1, 0].set_xlabel(x)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return _plot(figure, name, about)


def losses(name: str, about: str, terms: Curves, title: str) -> Plot:
    """A panel per term over the steps; a gap where no step had the term, whose value there is 0."""
    if pyplot() is None or not terms:
        return Plot(name, about, "")
    figure, axes = pyplot().subplots(
        len(terms), 1, sharex=True, squeeze=False, figsize=(INCHES, 0.8 + 1.0 * len(terms))
    )
    for axis, (term, points) in zip(axes[:, 0], terms.items(), strict=True):
        steps, values = zip(*with_gaps(points), strict=True)
        axis.plot(steps, values, ".-", ms=4, lw=1.2, color=INK)
        axis.set_ylabel(term)
        axis.set_ylim(bottom=0)
    axes[0, 0].set_title(title, loc="left")
    axes[-1, 0].set_xlabel("step")
    return _plot(figure, name, about)


def with_gaps(points: Points) -> list[tuple[float, float]]:
    """A term over the steps, NaN where it was not computed.

    Example:
        >>> with_gaps([(12, 0.0), (24, 1.5)])
        [(12, nan), (24, 1.5)]
    """
    return [(step, value or math.nan) for step, value in sorted(points)]


def amounts(name: str, about: str, values: Mapping[str, float], x: str) -> Plot:
    """A bar per label, with its number."""
    if pyplot() is None or not values:
        return Plot(name, about, "")
    figure, axis = pyplot().subplots(figsize=(INCHES, 0.9 + 0.3 * len(values)))
    found = axis.barh([*values], [*values.values()], color=COLOURS["teal"][0], height=0.6)
    axis.bar_label(found, [f" {value:,.3g}" for value in values.values()], fontsize=8)
    axis.margins(x=0.15)
    axis.invert_yaxis()
    axis.set_xlabel(x)
    axis.grid(visible=False, axis="y")
    return _plot(figure, name, about)


def colours_of(labels: Mapping[str, Any]) -> list[str]:
    """A colour per label: an adapter's own, and of others one after the other."""
    others = cycle(OTHERS)
    names = (OF_ADAPTER.get(label) or next(others) for label in labels)
    return [COLOURS[name][0] for name in names]


def _log_axis(axis: Any, values: Iterable[float]) -> None:
    """A logarithmic axis with ticks at the values, as far as their numbers have room."""
    ticks: list[float] = []
    for value in sorted(set(values)):
        if not ticks or value > 1.4 * ticks[-1]:
            ticks.append(value)
    axis.set_xscale("log", base=2)
    names = [f"{tick:,.0f}" if tick >= 1000 else f"{tick:.4g}" for tick in ticks]
    axis.set_xticks(ticks, names, rotation=45 if len(ticks) > 7 else 0)
    axis.minorticks_off()


def _plot(figure: Any, name: str, about: str) -> Plot:
    """Keep a figure as SVG, and close it; names of its parts would be there twice on a page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    pyplot().close(figure)
    svg = re.sub(r"^.*?(?=<svg)", "", out.getvalue(), flags=re.DOTALL)
    return Plot(name, about, re.sub(r' id="[a-z0-9]+_\d+"', "", svg))


@cache
def pyplot() -> Any:
    """matplotlib's pyplot, set to write the same file each time; None where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    matplotlib.rcParams |= {
        "svg.fonttype": "none",
        "svg.hashsalt": "st_jv5",
        "font.size": 9,
        "axes.titlesize": 9,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": RULE,
        "grid.linewidth": 0.6,
        "figure.constrained_layout.use": True,
        "figure.facecolor": PAPER,
        "savefig.facecolor": PAPER,
        "axes.facecolor": PAPER,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.edgecolor": QUIET,
        "xtick.color": QUIET,
        "ytick.color": QUIET,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
    }
    import matplotlib.pyplot

    return matplotlib.pyplot
