"""What a recipe will cost, before anything is downloaded: tokens, operations, memory, disk, hours.

python -m training.run training/recipes/small.yaml --plan
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from st_jv5.evaluation.page import Cell, Page, Table
from st_jv5.evaluation.plots import amounts
from st_jv5.recipe.context import Run
from st_jv5.recipe.planning.planner import DRAWING_BYTES, GIB, PhasePlan, Planner, TeacherPlan
from st_jv5.recipe.results.measure import without_far
from st_jv5.recipe.strict import RecipeError


@dataclass(frozen=True)
class Gpu:
    """A device to reckon with."""

    bfloat16_flops: float
    """Dense, from the vendor's data sheet."""
    memory_gib: float
    price: float
    """US dollars an hour: our guess at what clouds ask; pay your own."""


GPUS = {
    "A100": Gpu(312e12, 80, 1.8),
    "H100": Gpu(989e12, 80, 3.0),
    "L4": Gpu(121e12, 24, 0.8),
    "RTX 4090": Gpu(165e12, 24, 0.5),
}
UTILISATION = 0.4
"""Share of a GPU's peak that training reaches: our guess, not measured."""


# ------------------------------------------------------------------------------------- what is told


def plan_page(run: Run, measured: bool = True) -> Page:
    """The whole plan, without plots.

    Args:
        run: Its recipe.
        measured: Whether a short probe says how fast this machine is.
    """
    try:
        planner = Planner(run)
    except OSError as error:
        raise RecipeError(f"student or teacher: {error}") from error
    if measured:
        planner.measure()
    teaching, phases = planner.teaching(), list(planner.phases())
    page = Page(f"{run.recipe.name}: the plan")
    page.add("Work", _work(teaching, phases))
    page.add(
        "Rows",
        _rows(planner),
        "Each process needs this much memory for rows. Their texts are memory mapped: processes "
        "share the pages, which are freed when memory is needed. While a data set is prepared, a "
        "local file is on the disk twice.",
    )
    page.add("Memory per device, in GiB", _memory(phases))
    page.add("How often each data set is read", _passes(run, planner))
    page.add(
        "On a GPU",
        _gpus(teaching, phases),
        f"At {UTILISATION:.0%} of the data sheet's dense bfloat16 operations, and at prices that "
        "are our guesses. What does not fit needs smaller chunks (loss.mini_batch_tokens).",
    )
    page.add("Warnings", *_warnings(run, planner))
    return page


def with_plots(page: Page) -> Page:
    """A plan with plots of its time and memory, which a terminal could not show."""
    sections = dict(page.sections)
    for heading, column, x in (
        ("Work", "minutes here", "minutes on this machine"),
        ("Memory per device, in GiB", "in all", "GiB per device"),
    ):
        table = next(part for part in sections[heading] if isinstance(part, Table))
        place = table.header.index(column)
        values = {str(row[0]): str(row[place]).replace(",", "") for row in table.rows}
        known = {name: float(value) for name, value in values.items() if value not in ("-", "?")}
        known.pop("training", None)  # the sum
        if known:
            about = f"{x.capitalize()}, by phase."
            sections[heading].insert(0, amounts(column.replace(" ", "-"), about, known, x))
    return page


def _work(teaching: TeacherPlan, phases: list[PhasePlan]) -> Table:
    rows: list[list[Cell]] = [
        ["teacher", "", "", _millions(teaching.tokens), _tera(teaching.flops),
         _minutes(teaching.seconds), f"{_count(teaching.texts)} texts, "
         f"{teaching.disk / GIB:.2f} GiB on disk"]
    ]  # fmt: skip
    for one in phases:
        rows.append(
            [one.name, str(one.steps), str(one.devices), _millions(one.tokens), _tera(one.flops),
             _minutes(one.seconds), ""]
        )  # fmt: skip
    known = [one.seconds for one in phases]
    total = sum(s for s in known if s is not None) if None not in known else None
    flops = sum(one.flops for one in phases)
    tokens = sum(one.tokens for one in phases)
    rows.append(["training", "", "", _millions(tokens), _tera(flops), _minutes(total), ""])
    return Table(
        ["phase", "steps", "devices", "M tokens", "10^12 operations", "minutes here", ""], rows
    )


def _rows(planner: Planner) -> Table:
    rows: list[list[Cell]] = []
    every = [*planner.facts.values()]
    for name, facts in planner.facts.items():
        rows.append([name, _count(facts.rows), *_gibs(facts.disk, facts.rows)])
    known = [facts.rows or 0 for facts in every]
    total = sum(facts.disk or 0 for facts in every)
    most = max(
        (sum(planner.facts[name].rows or 0 for name in phase.mix))
        for phase in planner.recipe.phases.values()
    )
    rows.append(["in all, and the largest phase", _count(sum(known)), *_gibs(total, most)])
    return Table(["data set", "rows", "GiB on disk", "GiB of a process"], rows)


def _gibs(disk: float | None, rows: int | None) -> list[Cell]:
    memory = None if rows is None else rows * DRAWING_BYTES
    return ["?" if size is None else f"{size / GIB:.2f}" for size in (disk, memory)]


def _memory(phases: list[PhasePlan]) -> Table:
    parts = list(dict.fromkeys(part for one in phases for part in one.memory))
    rows: list[list[Cell]] = [
        [one.name, *(f"{one.memory.get(part, 0) / GIB:.2f}" for part in parts),
         f"{one.bytes / GIB:.2f}"]
        for one in phases
    ]  # fmt: skip
    return Table(["phase", *parts, "in all"], rows)


def _passes(run: Run, planner: Planner) -> Table:
    rows: list[list[Cell]] = []
    for name, phase in run.recipe.phases.items():
        for data_set in phase.mix:
            count = planner.rows_of(phase, data_set)
            told = "?"
            if count:
                passes = phase.passes(data_set, count)
                told = f"{min(passes, phase.max_epochs):.2g}"
                if passes > phase.max_epochs:
                    told += f" (max_epochs; its weight asks for {passes:,.0f})"
            rows.append([name, data_set, _count(count), f"{phase.share(data_set):.1%}", told])
    return Table(["phase", "data set", "rows", "of the batches", "passes"], rows)


def _gpus(teaching: TeacherPlan, phases: list[PhasePlan]) -> Table:
    rows: list[list[Cell]] = []
    for name, gpu in GPUS.items():
        rate = UTILISATION * gpu.bfloat16_flops
        hours = [one.flops / rate / 3600 for one in phases]
        teacher = teaching.flops / rate / 3600
        needed = max(one.on_device for one in phases) / GIB
        rows.append(
            [name, _short(teacher), *map(_short, hours), _short(teacher + sum(hours)),
             _short(gpu.price * (teacher + sum(hours))),
             "yes" if needed < gpu.memory_gib else f"no: {needed:.0f} of {gpu.memory_gib:.0f} GiB"]
        )  # fmt: skip
    names = [one.name.removeprefix("adapters.") for one in phases]
    return Table(["GPU hours", "teacher", *names, "in all", "US dollars", "fits one"], rows)


def _warnings(run: Run, planner: Planner) -> Iterator[str]:
    if warning := without_far(run):
        yield warning
    away = {n: spec for n, spec in run.recipe.data_sets.items() if not spec.is_local}
    if away:
        yield f"not looked at, being on the Hub: {', '.join(away)}; their numbers are the recipe's"
    if held := [name for name, spec in away.items() if spec.held_out]:
        names = ", ".join(held)
        yield f"counted as trained on: rows that share a text with those held out of {names}"
    for name, spec in run.used_sets.items():
        facts = planner.facts[name]
        if not spec.verified:
            yield f"not verified: {name} ({spec.named}): its name and columns were not seen"
        if facts.rows is None:
            yield f"unknown size: {name} ({spec.named}); give data_sets.{name}.rows"
        if not facts.tokens and spec.kind != "synset_pairs":
            yield f"unknown lengths: {name} ({spec.named}); every text is taken as cut at the limit"


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _millions(number: float) -> str:
    return f"{number / 1e6:,.2f}"


def _tera(number: float) -> str:
    return f"{number / 1e12:,.1f}"


def _short(number: float) -> str:
    """Hours, dollars: also of a recipe that takes a GPU a second.

    Example:
        >>> _short(1234.5), _short(1.234), _short(0.0123), _short(3e-05), _short(0)
        ('1,234', '1.2', '0.012', '< 0.01', '0')
    """
    if 0 < number < 0.01:
        return "< 0.01"
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _minutes(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds / 60:,.1f}"
