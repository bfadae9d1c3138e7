"""Tables of means that a run alone has: its adapters against the base, its smaller vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from st_jv5.evaluation.mteb_encoder import adapter_for
from st_jv5.evaluation.near_far import FAR, INTERVALS, NEAR, Groups, Scores
from st_jv5.evaluation.page import Cell, Table
from st_jv5.evaluation.record import Row
from st_jv5.evaluation.report import curve_rows
from st_jv5.task_table import BASE

SEEN, NEW, NO_LABELS = "seen", "new", ""
"""How a task's labels relate to training: some were trained on; none was; it has none."""
BOTH_SIDES = "near and far"


def own_tasks(
    adapter: str, groups: Groups, types: Mapping[str, str], labels: Mapping[str, str]
) -> dict[tuple[str, str], list[str]]:
    """(text, labels) -> the tasks that are routed to an adapter; those without are left out.

    Args:
        adapter: An adapter of the recipe.
        groups: near and far.
        types: Task -> its mteb type.
        labels: Task -> seen, new or nothing.
    """
    by_side = {side: [t for t in every if adapter_for(types[t]) == adapter]
           for side, every in groups.items()}  # fmt: skip
    named = {
        (side, kind): [task for task in tasks if labels[task] == kind]
        for kind in (NO_LABELS, NEW, SEEN)
        for side, tasks in by_side.items()
    }
    named[BOTH_SIDES, NEW] = [t for tasks in by_side.values() for t in tasks if labels[t] == NEW]
    return {name: tasks for name, tasks in named.items() if tasks}


def adapters_table(
    scores: Scores,
    adapters: Sequence[str],
    groups: Groups,
    types: Mapping[str, str],
    labels: Mapping[str, str],
) -> Table:
    """Each adapter's mean over the tasks that are routed to it, against the base's.

    Args:
        scores: Scores of the adapters and the base.
        adapters: The adapters of the recipe.
        groups: near and far, separately.
        types: Task -> its mteb type.
        labels: Task -> whether its labels were trained on: seen, new or nothing.
    """
    rows: list[list[Cell]] = []
    for adapter in adapters:
        for name, tasks in own_tasks(adapter, groups, types, labels).items():
            own, base = scores.mean(adapter, tasks), scores.mean(BASE, tasks)
            gap = own - base
            about: list[Cell] = [adapter, *name, len(tasks)]
            rows.append([*about, own.value, base.value, gap.shown("+"), gap.verdict])
    header = ["adapter", "text", "labels", "its tasks", "own", "base", "difference", "verdict"]
    caption = (
        "Each adapter on its own tasks beside the base: means in percent. Labels: whether the "
        f"adapter was told them in training. {INTERVALS}"
    )
    return Table(header, rows, caption=caption)


ADVICE = {
    (True, True): "take it for its tasks, on any text",
    (True, False): "take it for its tasks on text like the training text; elsewhere it is no "
    "better than the base",
    (True, None): "take it for its tasks on text like the training text; elsewhere it is not known",
    (False, True): "take it for its tasks on text unlike the training text; on text like it, it is "
    "no better than the base",
    (None, True): "take it for its tasks on text unlike the training text; on text like it, it is "
    "not known",
}
"""Whether an adapter is better than the base on near and on far text (None: not measured) -> what
to do."""
NOTHING = "it brings nothing: take `base`"


def advice(
    scores: Scores,
    adapters: Sequence[str],
    groups: Groups,
    types: Mapping[str, str],
    labels: Mapping[str, str],
) -> Table | None:
    """When to use which adapter, by its tasks: of those with labels, the ones with new labels.

    None where no adapter has such tasks.
    """
    rows: list[list[Cell]] = []
    for adapter in adapters:
        named = own_tasks(adapter, groups, types, labels)
        gaps = {
            side: scores.mean(adapter, tasks) - scores.mean(BASE, tasks)
            for (side, kind), tasks in named.items()
            if side != BOTH_SIDES and kind != SEEN
        }
        if not gaps:
            continue
        near, far = (gaps[s].verdict == "better" if s in gaps else None for s in (NEAR, FAR))
        worse = [side for side, gap in gaps.items() if gap.verdict == "worse"]
        do = ADVICE.get((near, far), NOTHING)
        if worse:
            do = f"worse than the base on {' and '.join(worse)} text: take `base` there"
        gained = [gaps[side].shown("+") if side in gaps else "" for side in (NEAR, FAR)]
        rows.append([adapter, *gained, do])
    caption = (
        "When to use which adapter: what its tasks gain over the base, in points, on text like the "
        "training text (near) and on other text (far). Tasks whose labels an adapter was trained "
        f"on are left out. {INTERVALS}"
    )
    return Table(["adapter", NEAR, FAR, "advice"], rows, caption=caption) if rows else None


def kept_table(found: Sequence[Row], resamples: int) -> Table | None:
    """What is kept of float32 at full width, by cut vectors and by each other precision.

    Args:
        found: A model's rows; every task counts as it is routed.
        resamples: Resamples of the bootstrap.
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
    caption = f"Mean scores in percent of vectors that are cut, or stored smaller. {INTERVALS}"
    return Table(header, rows, caption=caption) if rows else None
