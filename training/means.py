"""Tables of means that a run alone has: its adapters against the base, its smaller vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.near_far import Groups, Scores
from eval.page import Cell, Table
from eval.record import Row
from eval.report import curve_rows
from st_jv5.evaluation.mteb_encoder import adapter_for
from st_jv5.tasks import BASE


def adapters_table(
    scores: Scores, adapters: Sequence[str], groups: Groups, types: Mapping[str, str]
) -> Table:
    """Each adapter's mean over the tasks that are routed to it, against the base's.

    Args:
        scores: Of the adapters and the base.
        adapters: Of the recipe.
        groups: near and far, told apart.
        types: Task -> its mteb type.
    """
    rows: list[list[Cell]] = []
    for adapter in adapters:
        for group, every in groups.items():
            tasks = [task for task in every if adapter_for(types[task]) == adapter]
            if tasks:
                own, base = scores.mean(adapter, tasks), scores.mean(BASE, tasks)
                gap = own - base
                rows.append(
                    [adapter, group, len(tasks), own.value, base.value, gap.shown("+"), gap.verdict]
                )
    return Table(["adapter", "text", "its tasks", "own", "base", "difference", "verdict"], rows)


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
        if tasks:
            sides = {"own": {t: at[dim, precision, t] for t in tasks},
                     "full": {t: at[width, "float32", t] for t in tasks}}  # fmt: skip
            scores = Scores(sides, tasks, resamples)
            own, full = scores.mean("own", tasks), scores.mean("full", tasks)
            share = own.percent_of(full).shown()
            rows.append([f"{dim} dims, {precision}", len(tasks), own.value, full.value, share])
    header = ["stored as", "tasks", "score", f"float32 at {width} dims", "% kept"]
    return Table(header, rows) if rows else None
