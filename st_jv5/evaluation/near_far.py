"""Near and far: scores on text like the training text, and on all other text.

A task is near when the model was trained on the kind of its text (``text_kinds`` of
st_jv5/evaluation/local_tasks.py), else far. A mean counts every task alike. Intervals hold 95% of a
bootstrap over samples, in which all sides are scored on the same queries or texts: differences and
shares are of pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from st_jv5.evaluation.local_tasks import labels_asked, text_kinds
from st_jv5.evaluation.mteb_encoder import adapter_for
from st_jv5.evaluation.page import Cell, Part, Table
from st_jv5.evaluation.plots import Bar
from st_jv5.evaluation.record import Row, main_rows, read_record
from st_jv5.evaluation.samples import Samples, interval, resampled
from st_jv5.files import read_json

Array = np.ndarray[Any, Any]

NEAR, FAR = "near", "far"
INTERVALS = "Intervals hold 95% of a bootstrap over samples."

Groups = Mapping[str, Sequence[str]]
"""Name of a group -> its tasks."""


def near_and_far(
    tasks: Iterable[str], trained_on: Collection[str], own: Mapping[str, str] | None = None
) -> dict[str, list[str]]:
    """The tasks of each side, in their order.

    Args:
        tasks: Their names.
        trained_on: Kinds of text, or tasks by name.
        own: The kinds of text of tasks of your own rows, by name.

    Example:
        >>> near_and_far(["WordNetSTS", "TopicClustering"], ["wordnet"])
        {'near': ['WordNetSTS'], 'far': ['TopicClustering']}
    """
    kinds = text_kinds() | dict(own or {})
    found = dict[str, list[str]]({NEAR: [], FAR: []})
    for task in tasks:
        is_near = task in trained_on or kinds.get(task) in trained_on
        found[NEAR if is_near else FAR].append(task)
    return found


class About(NamedTuple):
    """What a task is on, for one that is not local."""

    text_kind: str
    labels: Collection[str] = ()
    """The labels of the task."""


def labels_are_new(
    task: str, trained_on: Mapping[str, Collection[str]], own: Mapping[str, About] | None = None
) -> bool | None:
    """Whether a model was trained on none of a task's labels; None: the task has no labels.

    Args:
        task: A classification or clustering task of either split.
        trained_on: Kind of text -> the labels of it that were trained on.
        own: Tasks of your own rows.

    Example:
        >>> labels_are_new("TopicClustering", {"wikipedia": ["Arts"]})
        False
        >>> labels_are_new("HeldOutTopicClustering", {"wikipedia": ["Arts"]})
        True
    """
    asked: tuple[str, Collection[str]] | None = (own or {}).get(task)
    if asked is None and task in text_kinds():  # the text of others may not be here
        asked = labels_asked().get(task)
    if asked is None or not asked[1]:
        return None
    kind, labels = asked
    return frozenset(labels).isdisjoint(trained_on.get(kind, ()))


def kinds_of(tasks: Iterable[str], own: Mapping[str, str] | None = None) -> str:
    """The kinds of text of tasks, for people; ``own`` has those of your own rows."""
    kinds = text_kinds() | dict(own or {})
    return ", ".join(sorted({kinds.get(task, "a kind not known") for task in tasks}))


# ----------------------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Estimate:
    """A number and its resamples ``(resamples,)``, which are NaN where nothing could be drawn."""

    value: float
    drawn: Array

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.drawn - other.drawn)

    def percent_of(self, other: Estimate) -> Estimate:
        """The share of another, in percent."""
        return Estimate(100 * self.value / other.value, 100 * self.drawn / other.drawn)

    def shown(self, sign: str = "") -> str:
        """The mean with its 95% interval: ``62.1 [61.0, 63.2]``."""
        low, high = self.bounds
        told = f"{self.value:{sign}.1f}"
        return told if np.isnan(low) else f"{told} [{low:{sign}.1f}, {high:{sign}.1f}]"

    @property
    def bounds(self) -> tuple[float, float]:
        """The ends of the 95% interval; NaN where nothing could be drawn."""
        return interval(self.drawn)

    def bar(self, label: str) -> Bar:
        """A row of a plot."""
        return Bar(label, self.value, *self.bounds)

    @property
    def verdict(self) -> str:
        """What a difference says: better, worse, or within noise."""
        low, high = self.bounds
        if np.isnan(low):
            return "no samples"
        return "better" if low > 0 else "worse" if high < 0 else "within noise"


class Scores:
    """Everyone's main scores in percent, and their resamples: the same draws for all.

    Args:
        sides: Who -> task -> row.
        tasks: Tasks that every side has.
        resamples: Resamples of the bootstrap.

    Raises:
        ValueError: Two sides' scores of a task are not of the same samples; names the task.
    """

    def __init__(
        self, sides: Mapping[str, Mapping[str, Row]], tasks: Sequence[str], resamples: int = 1000
    ) -> None:
        self.tasks = tuple(tasks)
        self._found: dict[tuple[str, str], Estimate] = {}
        for task in tasks:
            rows = [rows[task] for rows in sides.values()]
            samples = [Samples(**row["samples"]) for row in rows if row["samples"]]
            drawn = np.full((len(rows), resamples), np.nan)
            if len(samples) == len(rows):
                try:
                    drawn = resampled(samples, resamples)
                except ValueError as error:
                    raise ValueError(f"{task}: {error}") from error
            for who, row, own in zip(sides, rows, drawn, strict=True):
                self._found[who, task] = Estimate(100 * row["main_score"], 100 * own)

    def mean(self, who: str, tasks: Sequence[str]) -> Estimate:
        """The mean over tasks, all with the same weight."""
        own = [self._found[who, task] for task in tasks]
        values, drawn = [one.value for one in own], [one.drawn for one in own]
        return Estimate(float(np.mean(values)), np.mean(drawn, axis=0))


# ------------------------------------------------------------------------------------------ tables


def means_table(
    scores: Scores, labels: Mapping[str, str], groups: Groups, start: str = "", whole: str = ""
) -> Table:
    """Each side's mean over each group, what it is above the start's, and its share of another's.

    Args:
        scores: Scores of all sides.
        labels: Who -> its name in the table; a row each.
        groups: Side by side; those without tasks are left out.
        start: Who is the model that training began with, if it was measured.
        whole: Who the shares are of, if any.
    """
    header = ["model"]
    rows: list[list[Cell]] = [[label] for label in labels.values()]
    for group, tasks in groups.items():
        if not tasks:
            continue
        header.append(f"{group}: mean of {len(tasks)} task{'s' if len(tasks) > 1 else ''}")
        header += ["above the start"] if start else []
        header += [f"% of the {whole}"] if whole else []
        for row, who in zip(rows, labels, strict=True):
            mean = scores.mean(who, tasks)
            row.append(mean.shown())
            if start:
                gap = mean - scores.mean(start, tasks)
                row.append("" if who == start else gap.shown("+"))
            if whole:
                share = mean.percent_of(scores.mean(whole, tasks))
                row.append("" if who == whole else share.shown())
    return Table(header, rows, caption=f"Mean main scores in percent. {INTERVALS}")


def groups_table(
    scores: Scores,
    heads: Sequence[str],
    groups: Mapping[tuple[str, ...], Sequence[str]],
    labels: Mapping[str, str],
    models: Sequence[str],
    start: str = "",
) -> Table:
    """A row per group of tasks: everyone's mean, and how the models stand to the start.

    Args:
        scores: Scores of all sides.
        heads: Heads of the columns with the parts of a group's name.
        groups: Name in parts -> tasks; those without are left out.
        labels: Who -> its name in the table; a column each.
        models: Models whose difference to the start is shown.
        start: Who is the model that training began with, if it was measured.
    """
    header = [*heads, "tasks", *labels.values()]
    trained = [who for who in models if start and who != start]
    for who in trained:
        header += [f"{labels[who]} above the start", "verdict"]
    rows: list[list[Cell]] = []
    for name, tasks in groups.items():
        if tasks:
            means = {who: scores.mean(who, tasks) for who in labels}
            row: list[Cell] = [*name, len(tasks), *(one.value for one in means.values())]
            for who in trained:
                gap = means[who] - means[start]
                row += [gap.shown("+"), gap.verdict]
            rows.append(row)
    caption = f"Mean main scores in percent, by {' and '.join(heads)}. {INTERVALS}"
    return Table(header, rows, caption=caption)


def by_family(groups: Groups, types: Mapping[str, str]) -> dict[tuple[str, ...], list[str]]:
    """``(family, near or far)`` -> tasks: a family's tasks are routed to one adapter.

    Args:
        groups: near and far.
        types: Task -> its mteb type.
    """
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for family in dict.fromkeys(adapter_for(types[t]) for own in groups.values() for t in own):
        for group, tasks in groups.items():
            found[family, group] += [t for t in tasks if adapter_for(types[t]) == family]
    return dict(found)


# ------------------------------------------------------------------------------------------- words


class Said(NamedTuple):
    """A sentence on how a model stands to its start."""

    text: str
    is_worse: bool = False
    """Whether it tells that training hurt."""
    is_unknown: bool = False
    """Whether it tells that nobody measured it."""

    @property
    def is_limit(self) -> bool:
        """Whether a user must know it first."""
        return self.is_worse or self.is_unknown


TEXT = {NEAR: "text like the training text", FAR: "text of other kinds"}
UNKNOWN = {
    NEAR: "whether training helped on text like the training text is not known",
    FAR: "whether training hurt on other text is not known",
}


def in_words(
    scores: Scores, subjects: Mapping[str, str], groups: Groups, start: str, start_name: str
) -> list[Said]:
    """How models stand to the one that training began with, on near and on far text.

    Args:
        scores: Scores of all sides.
        subjects: Who -> what the sentence calls it, such as "this model".
        groups: near and far.
        start: Who is the model that training began with.
        start_name: Name of the start.
    """
    sentences = []
    for group, tasks in groups.items():
        if not tasks:
            told = f"No {group} task was measured: {UNKNOWN[group]}."
            sentences.append(Said(told, is_unknown=True))
            continue
        for who, subject in subjects.items():
            mean = scores.mean(who, tasks)
            gap = mean - scores.mean(start, tasks)
            low, high = gap.bounds
            size = f"{abs(gap.value):.1f} {{}} {start_name} [{low:+.1f}, {high:+.1f}]"
            began = "the model that training began with"
            gap_told, verdict = {
                "better": (size.format("above"), f"it is better than {began}"),
                "worse": (size.format("below"), f"it is WORSE than {began}"),
                "within noise": (
                    f"within noise of {start_name} ({gap.shown('+')})",
                    f"it is neither better nor worse than {began}, as far as this tells",
                ),
                "no samples": (
                    f"{gap.value:+.1f} beside {start_name}",
                    "what of that is noise is not known",
                ),
            }[gap.verdict]
            told = f"{mean.shown()}, {gap_told}: on {TEXT[group]} {verdict}."
            sentences.append(
                Said(f"{group.capitalize()}, {subject}: {told}", gap.verdict == "worse")
            )
    return sentences


# ----------------------------------------------------------------------------- for records of eval


def trained_on(model: str) -> tuple[str, ...]:
    """The kinds of text that a recipe's run trained on, as recorded beside its folder ``model``."""
    told = Path(model).parent / "run.json"
    return tuple(read_json(told).get("text_kinds", ())) if told.is_file() else ()


def near_far_parts(
    runs: Mapping[str, Mapping[str, Row]],
    kinds: Collection[str],
    start: str = "",
    resamples: int = 1000,
) -> list[Part]:
    """Near and far means of records; by kind of text if near and far are not known.

    Args:
        runs: Name -> task -> row; of tasks that all have.
        kinds: What they were trained on; empty: not known.
        start: Folder of the record of the model that training began with, if there is one.
        resamples: Resamples of the bootstrap.
    """
    began, name = "", ""
    if start:
        name = Path(start).name
        began = f"{name} (start)"
        runs = {began: main_rows(read_record(start)["results"]), **runs}
    sides = iter(runs.values())
    tasks = [task for task in next(sides) if all(task in found for found in runs.values())]
    if not tasks:
        raise ValueError(f"no task that all of {', '.join(runs)} have")
    scores = Scores(runs, tasks, resamples)
    labels = {run: run for run in runs}
    models = {run: run for run in runs if run != began}
    own = {task: str(row["text_kind"]) for rows in runs.values() for task, row in rows.items()
           if row.get("text_kind")}  # fmt: skip
    if not kinds:
        known = text_kinds() | own
        by_kind: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for task in tasks:
            by_kind[known.get(task, "not known"),].append(task)
        unknown = "Near and far are not separated: nothing says what was trained on (--trained-on)."
        table = groups_table(scores, ["kind of text"], by_kind, labels, list(models), began)
        return [unknown, table]
    groups = near_and_far(tasks, kinds, own)
    far = kinds_of(groups[FAR], own) or "none"
    parts: list[Part] = [f"Near: {', '.join(kinds)}. Far: {far}."]
    if began:
        parts += [said.text for said in in_words(scores, models, groups, began, name)]
    return [*parts, means_table(scores, labels, groups, began)]


def as_text(parts: Sequence[Part]) -> str:
    """The sentences as lines for a terminal or Markdown."""
    return "\n\n".join(part.markdown() if isinstance(part, Table) else str(part) for part in parts)
