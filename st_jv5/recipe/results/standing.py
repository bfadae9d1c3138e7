"""How a run's model stands to all that was measured beside it, on near text and on far text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from st_jv5.evaluation.means import NEW, NO_LABELS, SEEN, adapters_table, advice, kept_table
from st_jv5.evaluation.mteb_encoder import adapter_for
from st_jv5.evaluation.near_far import (
    TEXT,
    About,
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
from st_jv5.evaluation.page import Cell, Part, Table
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
        kinds = self.recipe.text_kinds
        own = {task for task, about in self.own.items() if about.text_kind in kinds}
        return near_and_far(tasks, kinds | own)

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

    @cached_property
    def sentences(self) -> list[Said]:
        """How routed and base stand to the start, in words."""
        subjects = {ROUTED: "this model"}
        if self.recipe.adapters and not self.recipe.student.model:
            subjects[BASE] = "its base alone, without adapters,"
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
    def advice(self) -> str:
        """When to use which adapter, in one paragraph; empty where there is none."""
        return advice(
            self.scores, [*self.recipe.adapters], self.groups, self._types, self.labels_of_tasks
        )

    def summary(self) -> list[Table]:
        """Means: of everyone, of families, of each adapter, of cut and smaller vectors."""
        recipe, whole = self.recipe, TEACHER if TEACHER in self.records else ""
        everyone = self.labels(ROUTED, BASE, self.start, BEFORE, others=True)
        families = groups_table(
            self.scores,
            ["family", "text"],
            self._families,
            self.labels(self.start, BASE, ROUTED, TEACHER),
            [ROUTED],
            self.start,
        )
        tables = [means_table(self.scores, everyone, self.groups, self.start, whole), families]
        if recipe.adapters:
            adapters = list(recipe.adapters)
            own = (self.scores, adapters, self.groups, self._types, self.labels_of_tasks)
            tables.append(adapters_table(*own))
        kept = kept_table(self.smaller, recipe.evaluation.resamples) if self.smaller else None
        return [*tables, kept] if kept else tables

    def beside_the_start(self) -> Table:
        """Who x task, with intervals: the model beside its start, its base and the teacher.

        Chance and the adapters on tasks of others are left out.
        """
        who = {**self.labels(self.start, others=True), ROUTED: "this model"}
        cells: list[list[Cell]] = [
            ["metric", *(self.records[CHANCE][task]["metric"] for task in self.tasks)]
        ]
        if all(self.groups.values()):
            side = {task: group for group, tasks in self.groups.items() for task in tasks}
            cells.append(["text", *(side[task] for task in self.tasks)])
        for one, label in who.items():
            cells.append([label, *(self.scores.mean(one, [t]).shown() for t in self.tasks)])
        gaps = [self.scores.mean(ROUTED, [t]) - self.scores.mean(self.start, [t])
                for t in self.tasks]  # fmt: skip
        cells.append(["this model above the start", *(gap.shown("+") for gap in gaps)])
        cells.append(["", *(gap.verdict for gap in gaps)])
        return Table(["", *self.tasks], cells)

    def every_task(self) -> list[Part]:
        """Who x task, near tasks and far ones in tables of their own."""
        parts: list[Part] = []
        for group, tasks in self.groups.items():
            if tasks:
                parts.append(f"{group.capitalize()}, {TEXT[group]} ({kinds_of(tasks, self.own)}):")
                parts.append(self.score_table(tasks))
                if TEACHER in self.records:
                    parts.append(self.kept_of_teacher(tasks))
        return parts

    def score_table(self, tasks: Sequence[str]) -> Table:
        """Who x task; the adapter that a task is routed to is bold."""
        records = self.records
        cells: list[list[Cell]] = [["metric", *(records[CHANCE][task]["metric"] for task in tasks)]]
        if any(self.labels_of_tasks[task] for task in tasks):
            cells.append(["labels", *(self.labels_of_tasks[task] for task in tasks)])
        bold = set()
        for who in records:
            cells.append([self.label(who), *(score(records, who, task) for task in tasks)])
            for x, task in enumerate(tasks, start=1):
                if adapter_for(records[who][task]["type"]) == who:
                    bold.add((len(cells) - 1, x))
        return Table(["", *tasks], cells, frozenset(bold))

    def kept_of_teacher(self, tasks: Sequence[str]) -> Table:
        """The start's, the base's and the routed model's share of the teacher's score."""
        rows: list[list[Cell]] = []
        for who, label in self.labels(self.start, BEFORE, BASE, ROUTED).items():
            own, whole = ([score(self.sides, one, t) for t in tasks] for one in (who, TEACHER))
            rows.append([label, *(100 * x / y for x, y in zip(own, whole, strict=True))])
        return Table(["% of the teacher", *tasks], rows)

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


def own_adapter(records: Records, task: str) -> str:
    """The adapter that a task is routed to; the base, where the recipe trains no such adapter."""
    adapter = adapter_for(records[BASE][task]["type"])
    return adapter if adapter in records else BASE


def score(records: Records, who: str, task: str) -> float:
    """Main score in percent."""
    return 100 * float(records[who][task]["main_score"])
