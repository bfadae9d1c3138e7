"""What a run comes to: means over its tasks, with 95% intervals of a bootstrap over samples.

Every task counts alike. In a resample all sides are scored on the same queries or texts:
differences and shares are of pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.page import Cell, Table
from eval.record import Row
from eval.report import curve_rows
from eval.samples import Samples, interval, resampled
from st_jv5.evaluation.mteb_encoder import adapter_for
from st_jv5.tasks import BASE

Array = np.ndarray[Any, Any]


def means(sides: Sequence[Sequence[Row]], resamples: int) -> tuple[Array, Array]:
    """Mean scores in percent of sides on the same tasks.

    Args:
        sides: Each a row per task, the tasks in one order.
        resamples: Of the bootstrap.

    Returns:
        The means ``(sides,)`` and the resampled ones ``(sides, resamples)``.
    """
    scores = np.array([[row["main_score"] for row in rows] for rows in sides])
    drawn = [
        resampled([Samples(**row["samples"]) for row in task], resamples)
        for task in zip(*sides, strict=True)
    ]
    return 100 * scores.mean(axis=1), 100 * np.mean(drawn, axis=0)


def within(value: float, drawn: Array, sign: str = "") -> str:
    """A value and 95% of its resamples: ``62.1 [61.0, 63.2]``."""
    low, high = interval(drawn)
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def means_table(
    sides: Mapping[str, Mapping[str, Row]],
    tasks: Sequence[str],
    resamples: int,
    beside: str,
    whole: str = "",
) -> Table:
    """Each side's mean, what it is above ``beside``'s, and as a share of ``whole``'s (if named)."""
    names = list(sides)
    found, drawn = means([[sides[name][task] for task in tasks] for name in names], resamples)
    less = names.index(beside)
    rows: list[list[Cell]] = []
    for i, name in enumerate(names):
        above = within(found[i] - found[less], drawn[i] - drawn[less], "+") if i != less else ""
        rows.append([name, within(found[i], drawn[i]), above])
        if whole:
            of = names.index(whole)
            share = within(100 * found[i] / found[of], 100 * drawn[i] / drawn[of])
            rows[-1].append(share if i != of else "")
    plural = "s" if len(tasks) > 1 else ""
    header = ["", f"mean of {len(tasks)} task{plural}", f"above {beside}"]
    return Table([*header, f"% of the {whole}"] if whole else header, rows)


def adapters_table(
    records: Mapping[str, Mapping[str, Row]], adapters: Sequence[str], resamples: int
) -> Table:
    """Each adapter's mean over the tasks that are routed to it, against the base's."""
    rows: list[list[Cell]] = []
    for adapter in adapters:
        tasks = [t for t, row in records[BASE].items() if adapter_for(row["type"]) == adapter]
        if not tasks:
            continue
        sides = [[records[who][task] for task in tasks] for who in (adapter, BASE)]
        (own, base), (own_drawn, base_drawn) = means(sides, resamples)
        low, high = interval(own_drawn - base_drawn)
        verdict = "better" if low > 0 else "worse" if high < 0 else "within noise"
        gap = within(own - base, own_drawn - base_drawn, "+")
        rows.append([adapter, len(tasks), float(own), float(base), gap, verdict])
    return Table(["adapter", "its tasks", "own", "base", "difference", "verdict"], rows)


def kept_table(found: Sequence[Row], resamples: int) -> Table | None:
    """What is kept of float32 at full width, by cut vectors and by each other precision.

    Args:
        found: A model's rows; every task counts as it is routed.
        resamples: Of the bootstrap.
    """
    routed = curve_rows(found)
    at = {(row["dim"], row["precision"], row["task"]): row for row in routed}
    width = max(row["dim"] for row in routed)
    points = list(dict.fromkeys(key[:2] for key in at))
    rows: list[list[Cell]] = []
    for dim, precision in points:
        if (dim, precision) == (width, "float32") or (dim != width and precision != "float32"):
            continue
        tasks = [t for d, p, t in at if (d, p) == (dim, precision) and (width, "float32", t) in at]
        sides = [[at[d, p, t] for t in tasks] for d, p in ((dim, precision), (width, "float32"))]
        if tasks:
            (own, full), (own_drawn, full_drawn) = means(sides, resamples)
            share = within(100 * own / full, 100 * own_drawn / full_drawn)
            rows.append([f"{dim} dims, {precision}", len(tasks), float(own), float(full), share])
    header = ["stored as", "tasks", "score", f"float32 at {width} dims", "% kept"]
    return Table(header, rows) if rows else None
