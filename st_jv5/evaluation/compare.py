"""What ``st-jv5 compare`` does: runs of tasks side by side, with 95% intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import mteb
import yaml
from mteb.cache import ResultCache

from st_jv5.evaluation.near_far import INTERVALS, as_text, near_far_parts
from st_jv5.evaluation.page import Cell, Page, Plot, Table
from st_jv5.evaluation.plots import Bar, intervals
from st_jv5.evaluation.record import Row, main_rows, read_record
from st_jv5.evaluation.samples import gap_of_rows
from st_jv5.task_table import unknown_name

PUBLISHED = Path(__file__).parent / "published.yaml"
SETTINGS = ("dim", "precision", "max_tokens")


def read_runs(folders: Sequence[str]) -> dict[str, dict[str, Row]]:
    """Name -> task -> its main row; names are as short as they can be while they differ."""
    runs: dict[str, dict[str, Row]] = {}
    for folder in folders:
        parts = Path(folder).parts
        name = parts[-1]
        if sum(Path(other).name == name for other in folders) > 1:
            name = "/".join(parts[-2:])
        if name in runs:
            raise ValueError(
                f"{folder} is given twice, or cannot be named differently from the others"
            )
        runs[name] = main_rows(read_record(folder)["results"])
    return runs


def verdict(one: Row, other: Row, resamples: int) -> str:
    """How ``other``'s score differs from ``one``'s, in a few words."""
    gap, low, high = gap_of_rows(other, one, resamples)
    if not one.get("samples") or not other.get("samples"):
        return f"{gap:+.1f} (no samples)"
    if math.isnan(low):
        return f"{gap:+.1f} (other samples: not comparable)"
    word = "within noise" if low <= 0 <= high else "better" if low > 0 else "worse"
    return f"{gap:+.1f} ({low:+.1f} to {high:+.1f}) {word}"


def settings_of(row: Row) -> tuple[tuple[str, Any], ...]:
    """What a row was scored at."""
    return tuple((key, row.get(key)) for key in SETTINGS)


def usual_settings(rows: Iterable[Row]) -> tuple[tuple[str, Any], ...]:
    """What most rows were scored at."""
    return Counter(map(settings_of, rows)).most_common(1)[0][0]


def as_words(settings: Iterable[tuple[str, Any]]) -> str:
    """Such as ``dim 64, precision int8``."""
    return ", ".join(f"{key} {value}" for key, value in settings)


def task_table(
    runs: dict[str, dict[str, Row]], others: dict[str, dict[str, float]], resamples: int
) -> Table:
    """A row per task, a column per run; then ``others``, of whom only scores are known."""
    first = next(iter(runs))
    tasks = list(dict.fromkeys(task for best_rows in runs.values() for task in best_rows))
    usual = {name: usual_settings(best_rows.values()) for name, best_rows in runs.items()}
    rows: list[list[Cell]] = []
    for task in tasks:
        at = next(best_rows[task] for best_rows in runs.values() if task in best_rows)
        cells: list[Cell] = [task, at["metric"]]
        for name, best_rows in runs.items():
            if task not in best_rows:
                cells.append("-")
                continue
            score = f"{100 * best_rows[task]['main_score']:.1f}"
            if name != first and task in runs[first]:
                score += f": {verdict(runs[first][task], best_rows[task], resamples)}"
            if own := [one for one in settings_of(best_rows[task]) if one not in usual[name]]:
                score += f" at {as_words(own)}"
            cells.append(score)
        cells += [scores.get(task, "-") for scores in others.values()]
        rows.append(cells)
    caption = f"Main score in percent; after the colon, what it is above {first}. {INTERVALS}"
    if len(set(usual.values())) > 1:
        told = "; ".join(f"{name} at {as_words(own)}" for name, own in usual.items())
        caption += f" Settings differ: {told}."
    return Table(["task", "metric", *runs, *others], rows, caption=caption)


def gap_plots(runs: dict[str, dict[str, Row]], resamples: int) -> list[Plot]:
    """How each run's tasks differ from the first run's."""
    (first, base), *rest = runs.items()
    plots = []
    for number, (name, rows) in enumerate(rest, start=1):
        bars = [
            Bar(task, *gap_of_rows(rows[task], base[task], resamples))
            for task in rows
            if task in base
        ]
        about = f"{name} minus {first}, in points, by task. {INTERVALS} Grey is within noise."
        plots.append(intervals(f"gaps-{number}", about, {name: bars}, "points", is_difference=True))
    return plots


def benchmark_tasks(name: str) -> list[str]:
    """Task names of ``BENCHMARK`` or ``BENCHMARK: TYPE``."""
    benchmark, _, kind = name.partition(": ")
    tasks = mteb.get_benchmark(benchmark).tasks
    return [task.metadata.name for task in tasks if not kind or task.metadata.type == kind]


def benchmark_table(
    runs: dict[str, dict[str, Row]], published: dict[str, dict[str, float]]
) -> Table:
    """Averages over whole benchmarks; a run that lacks tasks has no average."""
    names = list(dict.fromkeys(name for scores_of in published.values() for name in scores_of))
    rows: list[list[Cell]] = []
    for name in names:
        tasks = benchmark_tasks(name)
        cells: list[Cell] = [f"{name}, {len(tasks)} tasks"]
        for scores_of in runs.values():
            scores = [100 * scores_of[task]["main_score"] for task in tasks if task in scores_of]
            whole = len(scores) == len(tasks)
            cells.append(sum(scores) / len(scores) if whole else f"{len(scores)} of {len(tasks)}")
        cells += [scores_of.get(name, "-") for scores_of in published.values()]
        rows.append(cells)
    return Table(["average of", *runs, *published], rows)


def read_published(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Model -> benchmark -> published average; no names: all models."""
    known: dict[str, dict[str, float]] = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    if missing := [name for name in names if name not in known]:
        raise ValueError(unknown_name("model", missing[0], known, PUBLISHED.name))
    return {name: known[name] for name in names or known}


def read_mteb(
    models: Sequence[str], tasks: Sequence[str], cache: str | None
) -> dict[str, dict[str, float]]:
    """Model -> task -> score in percent, from mteb's result files."""
    results = ResultCache(cache)
    by_run: dict[str, dict[str, float]] = {}
    for name in models:
        loaded = results.load_results(models=[name], tasks=list(tasks), require_model_meta=False)
        scores = {
            result.task_name: 100 * float(result.get_score())
            for model in loaded.model_results
            for result in model.task_results
        }
        if not scores:
            raise ValueError(
                f"no results of {name} on these tasks in {results.cache_path}; "
                f"ResultCache().download_from_remote() gets those that mteb publishes"
            )
        by_run[name] = scores
    return by_run


def compare(
    folders: Sequence[str],
    *,
    resamples: int = 1000,
    published: Sequence[str] | None = None,
    results: Sequence[str] = (),
    cache: str | None = None,
    trained_on: Sequence[str] = (),
    start: str = "",
    html: str | None = None,
) -> str:
    """Runs side by side, as Markdown.

    Args:
        folders: Of records; the first is compared with.
        resamples: Of the bootstrap.
        published: Models of the paper whose averages are added; empty: all; None: none.
        results: Models in mteb's result files.
        cache: Folder of those; None: mteb's own.
        trained_on: Kinds of text that the runs were trained on: means of near and far are added.
        start: Folder of the record of the model that training began with.
        html: File of a page with plots to write, too.

    Raises:
        ValueError: A folder without a record, or records that share no task.
    """
    if resamples < 1:
        raise ValueError(f"--resamples must be positive, not {resamples}")
    runs = read_runs(folders)
    tasks = list(dict.fromkeys(task for rows in runs.values() for task in rows))
    others = read_mteb(results, tasks, cache)
    averages = None if published is None else read_published(published)
    means = bool(trained_on or start)
    parts = near_far_parts(runs, trained_on, start, resamples) if means else []
    page = Page(f"{', '.join(runs)}: scores side by side")
    page.add("Tasks", task_table(runs, others, resamples))
    page.add("Means", *parts)
    page.add("Benchmarks", *([] if averages is None else [benchmark_table(runs, averages)]))
    told = "\n\n".join(as_text(parts) for _, parts in page.sections)
    if html is not None:
        page.sections[0][1][:0] = gap_plots(runs, resamples)
        page.write_html(html)
    return told
