"""Tables and plots of ablations: all seeds, and what of their differences is more than noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from st_jv5.evaluation.page import Cell, Page, Part, Plot, Table
from st_jv5.evaluation.plots import dots, lines
from st_jv5.evaluation.record import Row
from st_jv5.evaluation.samples import Samples, paired_bootstrap

Result = Mapping[str, Any]
Axis = str | int
Series = dict[str, dict[Axis, list[Row]]]
"""Line of the table -> place on the axis -> a row per seed."""

RESAMPLES = 1000


@dataclass(frozen=True)
class Ablation:
    """A question, and the runs that answer it; the first is what the others are compared with."""

    title: str
    runs: tuple[str, ...]
    paper: str
    """What the paper found."""
    over: Literal["", "step", "dim", "precision", "max_tokens and theta"] = ""
    """What the scores are shown over."""


def ablation_page(
    ablations: Mapping[str, Ablation],
    results: Mapping[str, Sequence[Result | None]],
    seeds: Sequence[int],
) -> Page:
    """A section per ablation.

    Args:
        ablations: Short name -> ablation.
        results: Run -> the JSON of each seed.
        seeds: In the order of the results.
    """
    page = Page("Ablations")
    seconds = sum(
        sum(result["seconds"].values()) for many in results.values() for result in many if result
    )
    numbers = ", ".join(map(str, seeds))
    page.add(
        "How to read this",
        f"A cell has the score of each seed ({numbers}), in percent. Differences are of the means "
        f"over the seeds, with 95% intervals of a paired bootstrap over the task's queries or "
        f"pairs. Training and measuring took {seconds / 60:.0f} minutes in all.",
    )
    for short, ablation in ablations.items():
        finished = {run: [one for one in results[run] if one] for run in ablation.runs}
        parts: list[Part] = [f"The paper: {ablation.paper}"]
        tasks = dict.fromkeys(
            row["task"] for many in finished.values() for result in many for row in result["rows"]
        )
        for task in tasks:
            parts += task_parts(short, ablation, task, series_of(ablation, task, finished))
        page.add(f"({short}) {ablation.title}", *parts)
    return page


def series_of(ablation: Ablation, task: str, results: Mapping[str, Sequence[Result]]) -> Series:
    """The rows of one task that the ablation looks at."""
    over, series = ablation.over, Series()
    for run, many in results.items():
        for result in many:
            rows = [row for row in result["rows"] if row["task"] == task]
            last = max(row["step"] for row in rows)
            widest = max(row["dim"] for row in rows)
            for row in rows:
                plain = (
                    (over == "step" or row["step"] == last)
                    and (over == "dim" or row["dim"] == widest)
                    and (over == "precision" or row["precision"] == "float32")
                )
                if not plain:
                    continue
                label, place = run, "score"
                if over == "max_tokens and theta":
                    label, place = f"{run}, served at {row['theta']:,}", row["max_tokens"]
                elif over:
                    place = row[over]
                series.setdefault(label, {}).setdefault(place, []).append(row)
    return series


def task_parts(short: str, ablation: Ablation, task: str, series: Series) -> list[Part]:
    """Plot, scores and differences of one task."""
    places: list[Axis] = list(dict.fromkeys(p for points in series.values() for p in points))
    if all(isinstance(place, int) for place in places):
        places.sort()
    first, *arms = series
    scores: list[list[Cell]] = [
        [label, *(" / ".join(_scores(points.get(place, ()))) for place in places)]
        for label, points in series.items()
    ]
    gaps: list[list[Cell]] = [
        [label, *(difference(series[label].get(p, ()), series[first].get(p, ())) for p in places)]
        for label in arms
    ]
    metric = next(iter(series[first].values()))[0]["metric"]
    names = [place_name(ablation.over, place) for place in places]
    parts: list[Part] = [plot_of(short, ablation, task, series)]
    parts += [f"{task}, {metric}:", Table(["", *names], scores)]
    if arms:
        parts += [f"Difference to {first}:", Table(["", *names], gaps)]
    if ablation.over == "precision":
        parts += lost_parts(task, series)
    return parts


def place_name(over: str, place: Axis) -> str:
    """A column's header."""
    unit = {"step": "step {}", "dim": "{} dims", "max_tokens and theta": "{} tokens"}
    return unit.get(over, "{}").format(place)


def _scores(rows: Sequence[Row]) -> list[str]:
    return [f"{100 * row['main_score']:.1f}" for row in rows]


def difference(one: Sequence[Row], other: Sequence[Row]) -> str:
    """The mean of ``one``'s seeds minus ``other``'s, its interval, and a plain word."""
    if not one or not other:
        return "-"
    means = [np.mean([100 * row["main_score"] for row in rows]) for rows in (one, other)]
    sides = [[Samples(**row["samples"]) for row in rows] for rows in (one, other)]
    low, high = (100 * bound for bound in paired_bootstrap(sides[0], sides[1], RESAMPLES))
    return f"{means[0] - means[1]:+.1f} ({low:+.1f} to {high:+.1f}) {word(low, high)}"


def word(low: float, high: float) -> str:
    """What an interval says."""
    return "within noise" if low <= 0 <= high else "better" if low > 0 else "worse"


def lost_parts(task: str, series: Series) -> list[Part]:
    """What a precision loses against float32, per query, and whether the runs differ in it."""
    first = next(iter(series))
    lost: dict[str, dict[Axis, list[Samples]]] = {}
    for label, points in series.items():
        exact = [Samples(**row["samples"]) for row in points["float32"]]
        if exact[0].statistic != "mean":
            return []
        lost[label] = {
            place: [
                Samples("mean", (np.array(row["samples"]["values"]) - samples.values).tolist())
                for row, samples in zip(rows, exact, strict=True)
            ]
            for place, rows in points.items()
            if place != "float32"
        }
    places = list(lost[first])
    cells: list[list[Cell]] = []
    for label, losses in lost.items():
        line: list[Cell] = [label]
        for place in places:
            text = " / ".join(f"{100 * np.mean(samples.values):+.1f}" for samples in losses[place])
            if label != first:
                bounds = paired_bootstrap(losses[place], lost[first][place], RESAMPLES)
                low, high = (100 * bound for bound in bounds)
                text += f" ({low:+.1f} to {high:+.1f} against {first}: {word(low, high)})"
            line.append(text)
        cells.append(line)
    return [f"{task}, what is lost against float32:", Table(["", *map(str, places)], cells)]


def plot_of(short: str, ablation: Ablation, task: str, series: Series) -> Plot:
    """Lines over a numeric axis, dots elsewhere; every seed shows."""
    name, about = f"{short}-{task}", f"{ablation.title}: {task}, every seed."
    if ablation.over in ("", "precision"):
        groups: dict[str, dict[str, list[float]]] = {}
        for label, points in series.items():
            for place, rows in points.items():
                scores = [100 * row["main_score"] for row in rows]
                groups.setdefault(str(place), {})[label] = scores
        return dots(name, about, groups, "main score, %", task)
    curves: dict[str, list[tuple[float, float]]] = {}
    faint: dict[str, list[list[tuple[float, float]]]] = {}
    for label, points in series.items():
        values = {float(p): [100 * row["main_score"] for row in rows] for p, rows in points.items()}
        curves[label] = [(place, float(np.mean(many))) for place, many in values.items()]
        seeds = min(map(len, values.values()))
        faint[label] = [[(p, many[seed]) for p, many in values.items()] for seed in range(seeds)]
    axis = {"step": "step", "dim": "dimensions"}.get(ablation.over, "tokens that are read")
    return lines(name, about, curves, axis, title=task, log=True, faint=faint)
