"""How a run's model stands to all that was measured beside it, on near text and on far text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from st_jv5.evaluation.means import NEW, NO_LABELS, SEEN, adapters_table, advice, kept_table
from st_jv5.evaluation.mteb_encoder import adapter_for
from st_jv5.evaluation.near_far import (
    INTERVALS,
    TEXT,
    About,
    Estimate,
    Groups,
    Said,
    Scores,
    by_family,
    groups_table,
    in_words,
    kinds_of,
    labels_are_new,
    means_table,
    near_and_far,
)
from st_jv5.evaluation.page import Cell, Part, Plot, Table, shade
from st_jv5.evaluation.plots import against, intervals
from st_jv5.evaluation.record import Row
from st_jv5.recipe.config import Recipe
from st_jv5.recipe.results.measure import BEFORE, CHANCE, START, TEACHER
from st_jv5.task_table import BASE, TASKS

Records = dict[str, dict[str, Row]]
"""Who -> task -> row."""

ROUTED = "routed"
"""The finished model, every task with its own adapter."""


@dataclass(frozen=True)
class Standing:
    """How a run's model stands to all that was measured beside it, near and far apart."""

    recipe: Recipe
    records: Records
    """Who -> task -> row."""
    smaller: list[Row] = field(default_factory=list)
    """The model's rows at all dims and precisions."""
    trained_labels: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Kind of text -> the labels of it that a phase trained on."""
    own: Mapping[str, About] = field(default_factory=dict)
    """Tasks of rows that data sets hold out."""

    @cached_property
    def groups(self) -> Groups:
        """near and far -> tasks that everyone was measured on."""
        everyone = self.records.values()
        tasks = [t for t in self.records[CHANCE] if all(t in rows for rows in everyone)]
        return near_and_far(tasks, self.recipe.text_kinds, self.own_kinds)

    @property
    def own_kinds(self) -> dict[str, str]:
        """Task of held-out rows -> the kind of their text."""
        return {task: about.text_kind for task, about in self.own.items()}

    @property
    def is_own(self) -> bool:
        """Whether all tasks are of rows that data sets hold out."""
        return bool(self.own) and self.own.keys() >= {*self.tasks}

    @property
    def tasks(self) -> list[str]:
        """The near ones first."""
        return [task for tasks in self.groups.values() for task in tasks]

    @cached_property
    def sides(self) -> Records:
        """The records, and the routed model's rows."""
        tasks = self.tasks
        routed = {task: self.records[own_adapter(self.records, task)][task] for task in tasks}
        return {**self.records, ROUTED: routed}

    @cached_property
    def scores(self) -> Scores:
        """Everyone's, on the same draws."""
        sides = {who: rows for who, rows in self.sides.items() if who != CHANCE}
        return Scores(sides, self.tasks, self.recipe.evaluation.resamples)

    @property
    def start(self) -> str:
        """Who is the model that training began with."""
        return START if START in self.records else BEFORE

    @property
    def start_name(self) -> str:
        """What it is called."""
        return self.recipe.student.base_name if START in self.records else f"the {BEFORE}"

    def label(self, who: str) -> str:
        """What a row of scores is called."""
        if who == self.start:
            return f"{self.start_name.removeprefix('the ')} (start)"
        if who in self.recipe.evaluation.blends:
            return f"{who} (blend)"
        if who == BASE:
            return BASE if self.recipe.student.model else "base (stage 1)"
        return who

    def labels(self, *first: str, others: bool = False) -> dict[str, str]:
        """Labels of some, and of all others but chance and adapters."""
        rest = [who for who in self.records if others and who not in (CHANCE, *TASKS)]
        return {w: self.label(w) for w in dict.fromkeys((*first, *rest)) if w in self.sides}

    @property
    def everyone(self) -> dict[str, str]:
        """Who has a row in the means -> its label; the model first."""
        return self.labels(ROUTED, BASE, self.start, BEFORE, others=True)

    @cached_property
    def sentences(self) -> list[Said]:
        """How routed and base stand to the start, in words."""
        subjects = {ROUTED: "this model"}
        if self.recipe.adapters and not self.recipe.student.model:
            subjects[BASE] = "its base without adapters"
        found = in_words(self.scores, subjects, self.groups, self.start, self.start_name)
        gaps = {
            " ".join(name): self.scores.mean(ROUTED, tasks) - self.scores.mean(self.start, tasks)
            for name, tasks in self._families.items()
            if tasks
        }
        if worse := [name for name, gap in gaps.items() if gap.verdict == "worse"]:
            found.append(Said(f"Worse than {self.start_name}: {', '.join(worse)}.", True))
        return found

    @cached_property
    def _families(self) -> Mapping[tuple[str, ...], list[str]]:
        return by_family(self.groups, self._types)

    @cached_property
    def _types(self) -> dict[str, str]:
        return {task: row["type"] for task, row in self.records[BASE].items()}

    @cached_property
    def labels_of_tasks(self) -> dict[str, str]:
        """Task -> whether its labels were trained on: seen, new or nothing."""
        words = {None: NO_LABELS, True: NEW, False: SEEN}
        return {
            task: words[labels_are_new(task, self.trained_labels, self.own)] for task in self.tasks
        }

    @property
    def advice(self) -> Table | None:
        """When to use which adapter."""
        return advice(
            self.scores, [*self.recipe.adapters], self.groups, self._types, self.labels_of_tasks
        )

    def summary(self) -> list[Table]:
        """Means: of everyone, of families, of each adapter, of cut and smaller vectors."""
        recipe, whole = self.recipe, TEACHER if TEACHER in self.records else ""
        families = groups_table(
            self.scores,
            ["family", "text"],
            self._families,
            self.labels(self.start, BASE, ROUTED, TEACHER),
            [ROUTED],
            self.start,
        )
        tables = [means_table(self.scores, self.everyone, self.groups, self.start, whole), families]
        if recipe.adapters:
            adapters = list(recipe.adapters)
            own = (self.scores, adapters, self.groups, self._types, self.labels_of_tasks)
            tables.append(adapters_table(*own))
        kept = kept_table(self.smaller, recipe.evaluation.resamples) if self.smaller else None
        return [*tables, kept] if kept else tables

    def beside_the_start(self) -> Table:
        """Task x who, with intervals: the model beside its start, its base and the teacher.

        Chance and the adapters on tasks of others are left out.
        """
        who = {**self.labels(self.start, others=True), ROUTED: "this model"}
        sides = {task: group for group, tasks in self.groups.items() for task in tasks}
        about = ["metric", *(["text"] if all(self.groups.values()) else [])]
        header = ["task", *who.values(), "this model above the start", "verdict", *about]
        table = _Rows()
        for task in self.tasks:
            told = {"metric": self.records[CHANCE][task]["metric"], "text": sides[task]}
            means = [self.scores.mean(one, [task]).shown() for one in who]
            gap = self.scores.mean(ROUTED, [task]) - self.scores.mean(self.start, [task])
            table.add([task, *means], gap, gap.verdict, *(told[name] for name in about))
        return table.under(header, f"Main score in percent. {INTERVALS}")

    def every_task(self) -> list[Part]:
        """Task x who, near tasks and far ones in tables of their own."""
        return [
            self.score_table(
                tasks,
                f"{group.capitalize()}, {TEXT[group]} ({kinds_of(tasks, self.own_kinds)}): main "
                f"score in percent. Differences are of pairs: brackets hold 95% intervals.",
            )
            for group, tasks in self.groups.items()
            if tasks
        ]

    def score_table(self, tasks: Sequence[str], caption: str = "") -> Table:
        """A row per task, as it is routed, beside all that are no adapter of the model."""
        has_labels = any(self.labels_of_tasks[task] for task in tasks)
        who = self.labels(CHANCE, self.start, BEFORE, BASE, ROUTED, others=True)
        against = BASE if self.adapters else self.start
        header = ["task", *who.values(), f"{ROUTED} above {self.label(against)}"]
        header += [f"{ROUTED}, % of the teacher"] if TEACHER in self.records else []
        header += ["metric", *(["labels"] if has_labels else [])]
        table = _Rows()
        for task in tasks:
            cells: list[Cell] = [task, *(score(self.sides, one, task) for one in who)]
            gap = self.scores.mean(ROUTED, [task]) - self.scores.mean(against, [task])
            others: list[Cell] = []
            if TEACHER in self.records:
                whole = score(self.sides, TEACHER, task)
                others.append(100 * score(self.sides, ROUTED, task) / whole)
            others.append(self.records[CHANCE][task]["metric"])
            others += [self.labels_of_tasks[task]] if has_labels else []
            table.add(cells, gap, *others)
        return table.under(header, caption)

    @property
    def adapters(self) -> list[str]:
        """The adapters that were measured."""
        return [who for who in self.records if who in (*self.recipe.adapters, *TASKS)]

    def headline(self) -> Plot:
        """Everyone's mean over near tasks and over far ones."""
        panels = {
            f"{group}: mean of {len(tasks)}": [
                self.scores.mean(who, tasks).bar(label) for who, label in self.everyone.items()
            ]
            for group, tasks in self.groups.items()
            if tasks
        }
        about = f"Mean main score on near tasks and on far ones, in percent. {INTERVALS}"
        return intervals("means", about, panels, "mean main score, %")

    def size_plot(self) -> Plot | None:
        """Everyone's size against the same means; None where a record tells no sizes."""
        size = {
            who: next(iter(self.sides[who].values())).get("parameters") or 0
            for who in self.everyone
        }
        panels = {
            group: {
                label: (size[who] / 1e6, self.scores.mean(who, tasks).bar(label))
                for who, label in self.everyone.items()
                if size[who]
            }
            for group, tasks in self.groups.items()
            if tasks
        }
        if not any(len(who) > 1 for who in panels.values()):
            return None
        about = f"Size of each model against its mean scores, near and far. {INTERVALS}"
        return against("sizes", about, panels, "million parameters")

    def as_json(self) -> dict[str, dict[str, float]]:
        """Who -> main score by task, and the means ``near`` and ``far`` where there are such."""
        found = {}
        for who, rows in self.sides.items():
            scores = {task: float(row["main_score"]) for task, row in rows.items()}
            for group, tasks in self.groups.items():
                if tasks:
                    scores[group] = sum(rows[task]["main_score"] for task in tasks) / len(tasks)
            found[who] = scores
        return found


class _Rows:
    """Rows of a table, each with a difference that is shaded as more than noise, or not."""

    def __init__(self) -> None:
        self.rows: list[list[Cell]] = []
        self.shades: dict[tuple[int, int], float] = {}

    def add(self, cells: Sequence[Cell], gap: Estimate, *others: Cell) -> None:
        """A row with its difference and what follows that."""
        if (value := shade(gap.value, *gap.bounds)) is not None:
            self.shades[len(self.rows), len(cells)] = value
        self.rows.append([*cells, gap.shown("+"), *others])

    def under(self, header: Sequence[str], caption: str) -> Table:
        """The table."""
        return Table(header, self.rows, shades=self.shades, caption=caption)


def own_adapter(records: Records, task: str) -> str:
    """The adapter that a task is routed to; the base, where the recipe trains no such adapter."""
    adapter = adapter_for(records[BASE][task]["type"])
    return adapter if adapter in records else BASE


def score(records: Records, who: str, task: str) -> float:
    """Main score in percent."""
    return 100 * float(records[who][task]["main_score"])
