"""One HTML page and one Markdown page of a run: scores, curves, matrix, settings, commands."""

from __future__ import annotations

from argparse import Namespace
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from st_jv5.evaluation.near_far import near_far_parts, trained_on
from st_jv5.evaluation.page import Cell, Code, Page, Part, Plot, Table, lines
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
    return Table(["task", "adapter", "metric", "score"], cells)


def matrix_table(found: Sequence[Row]) -> Table | None:
    """Every adapter and the base on every task; None where there is one adapter alone.

    Bold is the adapter that the task is routed to; the shade compares within a task.
    """
    adapters = list(dict.fromkeys(row["adapter"] for row in found))
    if len(adapters) < 2:
        return None
    adapters.sort(key=lambda name: name != BASE)
    columns = {adapter: main_rows(found, adapter) for adapter in adapters}
    tasks = [task for task in main_rows(found) if all(task in one for one in columns.values())]
    cells: list[list[Cell]] = []
    bold: set[tuple[int, int]] = set()
    shades: dict[tuple[int, int], float] = {}
    for y, task in enumerate(tasks):
        scores = [percent(columns[adapter][task]) for adapter in adapters]
        cells.append([task, *scores])
        low, high = min(scores), max(scores)
        for x, (adapter, score) in enumerate(zip(adapters, scores, strict=True), start=1):
            shades[y, x] = (score - low) / max(high - low, 1e-9)
            if is_routed(columns[adapter][task]):
                bold.add((y, x))
    return Table(["task", *map(str, adapters)], cells, frozenset(bold), shades)


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
    return Table(["task", "precision", *(f"{dim} dims" for dim in dims)], cells)


def curve_plots(found: Sequence[Row]) -> list[Plot]:
    """Float scores over dims, all tasks; and each task of several precisions over bytes."""
    rows = curve_rows(found)
    over_dims: dict[str, list[tuple[float, float]]] = defaultdict(list)
    over_bytes: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        if row["precision"] == "float32":
            over_dims[row["task"]].append((row["dim"], percent(row)))
        over_bytes[row["task"]][row["precision"]].append((row["bytes"], percent(row)))
    plots = []
    if any(len(points) > 1 for points in over_dims.values()):
        about = "Scores of float32 vectors over dimensions."
        plots.append(lines("dims", about, dict(over_dims), "dimensions", log=True))
    for task, curves in over_bytes.items():
        if len(curves) > 1:
            about = f"{task}: scores over bytes per vector, a line per precision."
            name = f"bytes-{task}"
            plots.append(lines(name, about, dict(curves), "bytes a vector", title=task, log=True))
    return plots


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
        parts += [f"{task}, {main[task]['metric']}:", Table(header, cells)]
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
    return [text, Table(header, cells)]


def near_far(
    record: dict[str, Any], rows: dict[str, Row], kinds: Sequence[str], start: str
) -> list[Part]:
    """A record's near and far means; ``kinds`` empty: those that a recipe's run recorded."""
    model = record["model"]
    return near_far_parts({model: rows}, kinds or trained_on(model), start)


def run_page(record: dict[str, Any], beside_scores: Sequence[Part] = ()) -> Page:
    """The page of one model's record; ``beside_scores`` follow the table of its scores."""
    rows: list[Row] = record["results"]
    page = Page(f"{record['model']}")
    page.add(
        "Scores",
        "Main metric in percent, each task with its own adapter.",
        score_table(rows),
        *beside_scores,
    )
    matrix = matrix_table(rows)
    if matrix is not None:
        text = "Main metric in percent. Bold: the adapter that the task is routed to."
        page.add("What the wrong adapter costs", text, matrix)
    curves = curve_table(rows)
    if curves is not None:
        text = "Each cut is normalised anew; one encode pass gives them all."
        page.add("Fewer dimensions, fewer bytes", text, *curve_plots(rows), curves)
    page.add("Long documents", *long_parts(rows))
    page.add("Settings", *settings_parts(record))
    if record.get("commands"):
        page.add("Reproduce", Code("\n".join(record["commands"])))
    return page


def write_report(args: Namespace) -> None:
    """Write the page of a record again, as the arguments of ``st-jv5 report`` say.

    Args:
        args: Parsed by :mod:`st_jv5.commands.evaluation`.

    Raises:
        ValueError: A folder without a record.
    """
    record = read_record(args.record)
    parts = near_far(record, main_rows(record["results"]), args.trained_on, args.start)
    run_page(record, parts).write(Path(args.record))
    print(f"report: {args.record}/report.html and report.md")
