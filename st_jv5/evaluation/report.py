"""One HTML page and one Markdown page of a run: scores, curves, matrix, settings, commands."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from st_jv5.evaluation.mteb_encoder import adapter_for
from st_jv5.evaluation.near_far import INTERVALS, Scores, near_far_parts, trained_on
from st_jv5.evaluation.page import Cell, Code, Page, Part, Plot, Table, shade
from st_jv5.evaluation.plots import Bar, intervals, lines
from st_jv5.evaluation.record import Row, is_routed, main_rows, read_record
from st_jv5.task_table import BASE


def percent(row: Row) -> float:
    """Main score in percent."""
    return 100 * float(row["main_score"])


def score_table(found: Sequence[Row]) -> Table:
    """A row per task, as it is routed."""
    cells = [
        [task, row["adapter"] or "-", row["metric"], percent(row)]
        for task, row in main_rows(found).items()
    ]
    caption = "Main score in percent, each task with its own adapter."
    return Table(["task", "adapter", "metric", "score"], cells, caption=caption)


def score_plot(found: Sequence[Row]) -> Plot:
    """Each task's score and its interval, a panel per adapter."""
    main = main_rows(found)
    scores = Scores({"model": main}, [*main])
    panels: dict[str, list[Bar]] = defaultdict(list)
    for task, row in main.items():
        panels[adapter_for(row["type"])].append(scores.mean("model", [task]).bar(task))
    about = f"Main score of each task, as it is routed. {INTERVALS}"
    return intervals("scores", about, panels, "main score, %")


def matrix_table(found: Sequence[Row], scores: Scores | None = None) -> Table | None:
    """The base on every task, and how far each adapter is above or below it.

    Bold is the adapter that the task is routed to; the shade is that of :func:`shade`.

    Args:
        found: Results of one model.
        scores: Of the base and all adapters, where they were resampled already.

    Returns:
        None where the base or the adapters were not measured.
    """
    columns = {name: main_rows(found, name) for name in dict.fromkeys(r["adapter"] for r in found)}
    base = columns.pop(BASE, {})
    columns.pop(None, None)
    tasks = [task for task, row in base.items()
             if all(rows.get(task, {}).get("data") == row.get("data") for rows in columns.values())
             and all(task in rows for rows in columns.values())
             and (scores is None or task in scores.tasks)]  # fmt: skip
    if not columns or not tasks:
        return None
    scores = scores or Scores({BASE: base, **columns}, tasks)
    cells: list[list[Cell]] = []
    bold: set[tuple[int, int]] = set()
    shades: dict[tuple[int, int], float] = {}
    for y, task in enumerate(tasks):
        cells.append([task, percent(base[task])])
        for x, (adapter, rows) in enumerate(columns.items(), start=2):
            gap = scores.mean(adapter, [task]) - scores.mean(BASE, [task])
            cells[y].append(f"{gap.value:+.1f}")
            if (value := shade(gap.value, *gap.bounds)) is not None:
                shades[y, x] = value
            if is_routed(rows[task]):
                bold.add((y, x))
    caption = (
        "`base`: main score, %. Adapters: points above or below it. Bold: the adapter that the "
        "task is routed to. Blue is better than the base, orange is worse, grey is within noise "
        "(the 95% interval of the difference holds 0)."
    )
    return Table(["task", BASE, *columns], cells, frozenset(bold), shades, caption)


def curve_rows(found: Sequence[Row]) -> list[Row]:
    """The routed rows at the most tokens: what curves over dims and bytes are drawn of."""
    main = main_rows(found)
    return [
        row
        for row in found
        if (row["adapter"], row["max_tokens"])
        == (main[row["task"]]["adapter"], main[row["task"]]["max_tokens"])
    ]


def curve_table(found: Sequence[Row]) -> Table | None:
    """Task and precision by dims; None where there is one dim and one precision alone."""
    rows = curve_rows(found)
    dims = sorted({row["dim"] for row in rows}, reverse=True)
    precisions = dict.fromkeys(row["precision"] for row in rows)
    if len(dims) < 2 and len(precisions) < 2:
        return None
    scores = {(row["task"], row["precision"], row["dim"]): percent(row) for row in rows}
    cells: list[list[Cell]] = [
        [task, precision, *(scores.get((task, precision, dim)) for dim in dims)]
        for task, precision in dict.fromkeys(key[:2] for key in scores)
    ]
    header = ["task", "precision", *(f"{dim} dims" for dim in dims)]
    return Table(header, cells, caption="Main score in percent; each cut is normalised anew.")


def curve_plots(found: Sequence[Row]) -> list[Plot]:
    """Means over an adapter's tasks: of float32 over dims, and of each precision over bytes."""
    families: dict[str, list[Row]] = defaultdict(list)
    for row in curve_rows(found):
        families[adapter_for(row["type"])].append(row)
    over_dims = {
        family: mean_curve([row for row in rows if row["precision"] == "float32"], "dim")["float32"]
        for family, rows in families.items()
        if any(row["precision"] == "float32" for row in rows)
    }
    plots = []
    if any(len(points) > 1 for points in over_dims.values()):
        about = (
            "Mean score of float32 vectors cut to fewer dimensions, by the adapter of the tasks."
        )
        plots.append(lines("dims", about, over_dims, "dimensions", log=True))
    for family, rows in families.items():
        curves = mean_curve(rows, "bytes")
        if len(curves) > 1:
            about = f"Mean score of {family} tasks over the bytes of a stored vector."
            name = f"bytes-{family}"
            plots.append(lines(name, about, curves, "bytes a vector", title=family, log=True))
    return plots


def mean_curve(rows: Sequence[Row], over: str) -> dict[str, list[tuple[float, float]]]:
    """Precision -> points ``(x, mean score)`` over the tasks that have all of them.

    Args:
        rows: Of one adapter's tasks, at some dims and precisions.
        over: What x is: dim or bytes.
    """
    found = {(row["precision"], row[over], row["task"]): percent(row) for row in rows}
    points = dict.fromkeys((precision, x) for precision, x, _ in found)
    tasks = {task for *_, task in found}
    whole = [task for task in tasks if all((*point, task) in found for point in points)]
    if not whole:  # of other settings each: the first task alone
        return mean_curve([row for row in rows if row["task"] == rows[0]["task"]], over)
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for precision, x in points:
        mean = sum(found[precision, x, task] for task in whole) / len(whole)
        curves[precision].append((x, mean))
    return dict(curves)


def long_parts(found: Sequence[Row]) -> list[Part]:
    """Tasks that were scored at several lengths of input, or by where the answer stands."""
    parts: list[Part] = []
    main = main_rows(found)
    for task in main:
        rows = [
            row
            for row in found
            if row["task"] == task
            and (row["adapter"], row["dim"], row["precision"])
            == (main[task]["adapter"], main[task]["dim"], main[task]["precision"])
        ]
        rows.sort(key=lambda row: row["max_tokens"] or 0)
        scores = rows[0]["scores"].get("test", [{}])[0]
        offsets = [key for key in scores if key.startswith("ndcg_at_10_from_")]
        if len(rows) < 2 and not offsets:
            continue
        header = ["max tokens", "score"]
        header += [f"from character {key.rpartition('_')[2]}" for key in offsets]
        cells: list[list[Cell]] = [
            [
                row["max_tokens"],
                percent(row),
                *(100 * row["scores"]["test"][0][key] for key in offsets),
            ]
            for row in rows
        ]
        parts.append(Table(header, cells, caption=f"{task}, {main[task]['metric']}, %."))
    return parts


def settings_parts(record: dict[str, Any]) -> list[Part]:
    """How each task was encoded, with which versions, on which weights."""
    rows = main_rows(record["results"])
    header = ["task", "type", "adapter", "query prompt", "document prompt", "dim", "precision"]
    header += ["dtype", "max tokens"]
    cells = [
        [
            task,
            row["type"],
            row["adapter"] or "-",
            *(repr(row["prompts"][side]) for side in ("query", "document")),
            *(row[key] for key in ("dim", "precision", "dtype", "max_tokens")),
        ]
        for task, row in rows.items()
    ]
    versions = {", ".join(f"{k} {v}" for k, v in row["versions"].items()) for row in rows.values()}
    encode, score = (
        sum(row["seconds"][part] for row in record["results"]) for part in ("encode", "score")
    )
    spent = f"{encode:.0f} s of encoding, {score:.0f} s of scoring"
    text = f"Weights {record['weights']}; {'; '.join(sorted(versions))}; {spent}."
    caption = "How each task was encoded."
    return [text, *_where(record["results"]), Table(header, cells, caption=caption)]


def _where(rows: Sequence[Row]) -> list[Part]:
    """When, where and by which commit the scores were computed, where the record says it."""
    told = [row for row in rows if row.get("machine")]
    if not told:
        return []
    last = max(row["time"] for row in told)
    machines = "; ".join(sorted({row["machine"] for row in told}))
    commits = ", ".join(sorted({row["commit"][:12] for row in told if row["commit"]}))
    by = f", st_jv5 commit {commits}" if commits else ""
    return [f"Measured until {last} on {machines}{by}."]


def near_far(
    record: dict[str, Any], rows: dict[str, Row], kinds: Sequence[str], start: str
) -> list[Part]:
    """A record's near and far means; ``kinds`` empty: those that a recipe's run recorded."""
    model = record["model"]
    return near_far_parts({model: rows}, kinds or trained_on(model), start)


def run_page(record: dict[str, Any], beside_scores: Sequence[Part] = ()) -> Page:
    """The page of one model's record; ``beside_scores`` stand before its scores."""
    page = Page(f"{record['model']}")
    rows: list[Row] = record["results"]
    page.add("Scores", *beside_scores, score_plot(rows), score_table(rows))
    add_details(page, record)
    return page


def add_details(page: Page, record: dict[str, Any], scores: Scores | None = None) -> None:
    """What a record tells beside its scores: adapters, curves, long documents, settings, commands.

    Args:
        page: What the sections are added to.
        record: Of one model.
        scores: As in :func:`matrix_table`.
    """
    rows: list[Row] = record["results"]
    matrix = matrix_table(rows, scores)
    if matrix is not None:
        page.add("What the wrong adapter costs", matrix)
    curves = curve_table(rows)
    if curves is not None:
        page.add("Fewer dimensions, fewer bytes", *curve_plots(rows), curves)
    page.add("Long documents", *long_parts(rows))
    page.add("Settings", *settings_parts(record))
    if record.get("commands"):
        page.add("Reproduce", Code("\n".join(record["commands"])))


def write_report(folder: str | Path, *, trained_on: Sequence[str] = (), start: str = "") -> None:
    """Write the page of a record again.

    Args:
        folder: Of the record.
        trained_on: Kinds of text that the model was trained on; empty: those that its run recorded.
        start: Folder of the record of the model that training began with.

    Raises:
        ValueError: A folder without a record.
    """
    record = read_record(folder)
    parts = near_far(record, main_rows(record["results"]), trained_on, start)
    run_page(record, parts).write(Path(folder))
