"""The report and the model card, from the records of a run alone."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from st_jv5.evaluation.mteb_encoder import adapter_for
from st_jv5.evaluation.near_far import TEXT, Groups, as_text
from st_jv5.evaluation.page import Cell, Code, Page, Part, Plot, Table
from st_jv5.evaluation.plots import losses
from st_jv5.evaluation.record import Row, read_record
from st_jv5.evaluation.report import add_details, curve_table
from st_jv5.evaluation.samples import Samples, paired_bootstrap
from st_jv5.export.merged import ENGINES_POOLING
from st_jv5.files import read_json, write_json, write_text
from st_jv5.folders.card import as_code, as_words, model_card
from st_jv5.folders.licenses import Licenses
from st_jv5.recipe.config import published_name
from st_jv5.recipe.context import Run
from st_jv5.recipe.results.measure import (
    MODEL,
    NOTHING_MEASURED,
    about_own,
    chosen_tasks,
    records_of,
)
from st_jv5.recipe.results.standing import ROUTED, Records, Standing, score
from st_jv5.student.own_way import OwnWay
from st_jv5.task_table import BASE
from st_jv5.teacher.sources import resolve_model

logger = logging.getLogger("st_jv5.recipe")


def report(run: Run) -> None:
    """Print the tables; write ``report/`` (a page, plots, summary.json) and the model card."""
    folder = run.folder / "report"
    unstated = state_licenses(run)
    if not chosen_tasks(run):
        page = Page(f"st_jv5 {run.recipe.name}")
        page.add("Scores", NOTHING_MEASURED)
        add_making(page, run)
        page.write(folder)
        write_json(folder / "summary.json", {})
        write_card(run, card_facts(run, NOTHING_MEASURED), {})
        print(NOTHING_MEASURED, end="\n\n")
        _tell_places(run, folder, unstated)
        return
    model = read_record(run.folder / "evaluation" / MODEL)
    standing = Standing(
        run.recipe, records_of(run), model["results"], run.labels, own=about_own(run)
    )
    resamples = run.recipe.evaluation.resamples
    adapters = list(run.recipe.adapters)
    verdicts = best_adapters(standing.records, adapters, standing.tasks, resamples)
    words: list[Part] = [said.text for said in standing.sentences]
    advice: list[Part] = [standing.advice] if standing.advice else []
    summary, every_task = standing.summary(), standing.every_task()
    first = [standing.beside_the_start()] if standing.is_own else []
    page = Page(f"st_jv5 {run.recipe.name}")
    plots = [plot for plot in (standing.headline(), standing.size_plot()) if plot]
    page.add("In all", *words, *plots, *advice, *first, *summary)
    page.add("Everyone on every task", *every_task)
    page.add("Each task's own adapter against the best", verdicts)
    add_details(page, model, standing.scores)
    add_making(page, run)
    page.write(folder)
    write_json(folder / "summary.json", standing.as_json())
    facts = card_facts(run, as_text([*words, *first, *summary, *every_task]), standing)
    write_card(run, facts, standing.sides[ROUTED], standing.groups)
    shown: list[Part] = [*first] if first else [*summary, *every_task, verdicts]
    print(as_text([*shown, *words, *advice]), end="\n\n")
    _tell_places(run, folder, unstated)
    for said in standing.sentences:
        if said.is_worse:
            logger.warning("%s", said.text)


def _tell_places(run: Run, folder: Path, unstated: str) -> None:
    print(f"model:  {run.folder / 'model'}\nreport: {folder / 'report.html'}")
    if unstated:
        logger.warning("%s", unstated)


def best_adapters(records: Records, adapters: list[str], tasks: list[str], resamples: int) -> Table:
    """For each task, compare its adapter with the best of base and adapters by paired bootstrap."""
    header = ["task", "adapter", "score", "best of base and adapters", "difference, 95%", "verdict"]
    rows: list[list[Cell]] = []
    for task in tasks:
        own = adapter_for(records[BASE][task]["type"])
        if own not in adapters:
            continue
        best = max([BASE, *adapters], key=lambda name: score(records, name, task))
        cells: list[Cell] = [task, own, score(records, own, task)]
        if best == own:
            cells += [own, "", "the best"]
        else:
            told, verdict = "", "no samples"
            sides = [records[name][task]["samples"] for name in (own, best)]
            if all(sides):
                one, other = (Samples(**side) for side in sides)
                low, high = (100 * bound for bound in paired_bootstrap(one, other, resamples))
                told = f"{low:+.1f} to {high:+.1f}"
                verdict = "worse" if high < 0 else "within noise of the best"
            cells += [f"{best} {score(records, best, task):.1f}", told, verdict]
        rows.append(cells)
    caption = "Scores in percent; the interval is of the own adapter minus the best."
    return Table(header, rows, caption=caption)


def title_of(phase: str) -> str:
    """A phase's name for people: ``adapters.retrieval`` is retrieval."""
    return {"stage1": "stage 1", "long": "stage 1, long"}.get(phase, phase.split(".")[-1])


def add_making(page: Page, run: Run) -> None:
    """How the model was made: losses, phases, data, settings, machine, commit."""
    page.add("Training", *loss_plots(run), phase_table(run), data_table(run))
    told = read_json(run.folder / "run.json")
    versions = [f"{name} {number}" for name, number in told["versions"].items()]
    facts = {
        "command": run.command,
        "commit": told["commit"] or "st_jv5 was installed, not a checkout",
        "last run": told.get("time", ""),
        "machine": told.get("machine", f"{told['device']}, {told['threads']} threads"),
        "forwards in": told["precision"],
        "versions": ", ".join([f"python {told['python']}", *versions]),
    }
    rows = [[name, value] for name, value in facts.items() if value]
    settings = yaml.safe_dump(published(told["recipe"]), sort_keys=False, allow_unicode=True)
    summary = "The recipe with all its settings, those among them that it leaves at their defaults"
    page.add("How it was made", Table(["", "this run"], rows), Code(settings.rstrip(), summary))


def published(settings: Any) -> Any:
    """Settings without the paths of this machine.

    Example:
        >>> published({"path": "/home/me/faq.jsonl", "steps": 3})
        {'path': 'faq.jsonl', 'steps': 3}
    """
    if isinstance(settings, dict):
        return {key: published(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [published(value) for value in settings]
    return published_name(settings) if isinstance(settings, str) else settings


def loss_plots(run: Run) -> list[Plot]:
    """Each phase's terms over its steps."""
    logs = {title_of(name): run.log_of(name) for name in run.recipe.phases}
    plots = []
    skip = {"loss", "grad_norm", "learning_rate", "epoch", "step"}
    for title, log in logs.items():
        curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for entry in read_json(log)["history"]:
            for term in set(entry) - skip if "loss" in entry else ():
                curves[term].append((entry["step"], entry[term]))
        about = (
            f"{title}: the weighted terms of its loss over steps; a gap where none had the term."
        )
        name = f"loss-{title.replace(' ', '-')}"
        terms = {term: curves[term] for term in sorted(curves)}
        plots.append(losses(name, about, terms, title))
    return plots


def phase_table(run: Run) -> Table:
    """What each phase was trained with, and how long it took."""
    rows: list[list[Cell]] = []
    for name, phase in run.recipe.phases.items():
        seconds = read_json(run.log_of(name))["seconds"]
        batch = f"{phase.devices} x {phase.batch_size}" if phase.devices > 1 else phase.batch_size
        rate = f"{phase.learning_rate:g}"
        rows.append([title_of(name), phase.steps, str(batch), rate, f"{seconds:.0f}"])
    return Table(["phase", "steps", "batch", "learning rate", "seconds"], rows)


def data_table(run: Run) -> Table:
    """The data sets that were trained on."""
    rows: list[list[Cell]] = []
    for name, spec in run.recipe.data_sets.items():
        if name in run.rows:
            count = len(run.rows[name])
            paths = ", ".join(map(published_name, spec.paths))
            source = (spec.source if spec.is_local else "") or paths
            rows.append([as_words(name), as_words(source), as_words(spec.license), count])
    return Table(["data set", "source", "license", "rows"], rows)


# ------------------------------------------------------------------------------------------ card

USAGE = {
    "retrieval": (
        'queries = model.encode(["first moon landing"], task="retrieval", prompt_name="query")\n'
        'documents = model.encode(["Apollo 11 landed in 1969."], task="retrieval", '
        'prompt_name="document")\n'
        "print(model.similarity(queries, documents))"
    ),
    "other": (
        'vectors = model.encode(["first moon landing", "Apollo 11 landed in 1969."], '
        'task="TASK")\n'
        "print(model.similarity(vectors, vectors))"
    ),
}
"""How the first task is called."""


def about_scores(run: Run, own: Collection[str]) -> str:
    """What the card's tables hold."""
    kinds = ", ".join(sorted(run.recipe.text_kinds))
    asked = "What each task is: `st_jv5/evaluation/local_tasks.py`."
    if own:
        asked = "Tasks called `(held out)` are of rows of the data sets above that were not "
        asked += "trained on; where others stand beside them: `st_jv5/evaluation/local_tasks.py`."
    return (
        f"Test split, main metric in percent. {asked} Near: text like the training text\n"
        f"({as_words(kinds)}). Far: text of other kinds. The start is the model that training "
        f"began with, used its own way. Intervals hold\n"
        f"95% of a bootstrap over samples, differences are paired."
    )


def limits_of(run: Run, standing: Standing | None) -> str:
    """Where the model is worse than its start, or nobody looked; then the recipe's own words."""
    found = [said.text for said in standing.sentences if said.is_limit] if standing else []
    return "\n\n".join([*found, run.recipe.limits.strip()])


def state_licenses(run: Run) -> str:
    """Put the recipe's licences into the model, and log which ones it does not state.

    They may have been added to the recipe since the model was made.
    """
    path = run.folder / "model" / "st_jv5.json"
    settings = read_json(path)
    licenses = Licenses.read(settings["licenses"], path)
    run.tell_licenses(licenses)
    if settings["licenses"] != asdict(licenses):
        write_json(path, {**settings, "licenses": asdict(licenses)})
    unknown = [
        f"{kind} {name}"
        for kind, named in asdict(licenses).items()
        for name, its in named.items()
        if its in ("", "unknown")
    ]
    if not unknown:
        return ""
    return (
        f"licence not stated: {', '.join(unknown)}. `st-jv5 check` and `publish` refuse the model "
        f"until the recipe says it (`license:` of the student, teacher or data set; "
        f"`st-jv5 train` then writes the card anew)"
    )


def write_card(
    run: Run, facts: dict[str, str], scored: Mapping[str, Row], groups: Groups | None = None
) -> None:
    """The model's README.md; ``scored`` has its rows by task, ``groups`` the near and far ones."""
    card = model_card(facts, card_metadata(run, scored, groups or {}))
    write_text(run.folder / "model" / "README.md", card)


def license_table(licenses: Licenses) -> str:
    """What the model was made of, and under which licences."""
    cells: list[list[Cell]] = [
        [kind, as_words(name), as_words(license_)]
        for kind, named in asdict(licenses).items()
        for name, license_ in named.items()
    ]
    return Table(["", "name", "licence"], cells).markdown()


def card_metadata(run: Run, scored: Mapping[str, Row], groups: Groups) -> ModelCardData:
    """The card's front matter, with the near and far means and a score per task for the Hub."""
    settings = read_json(run.folder / "model" / "st_jv5.json")
    licenses = Licenses.read(settings["licenses"], "st_jv5.json")
    student = run.recipe.student
    stated = next(iter(licenses.base.values()), "") if student.model else student.license
    scores = [
        EvalResult(
            task_type="feature-extraction",
            dataset_type=f"local/{group}",
            dataset_name=f"{group}, {TEXT[group]}: mean of {len(tasks)}",
            dataset_split="test",
            metric_type="mean_main_score",
            metric_value=round(100 * sum(scored[t]["main_score"] for t in tasks) / len(tasks), 2),
        )
        for group, tasks in groups.items()
        if tasks
    ]
    scores += [
        EvalResult(
            task_type=row["type"],
            dataset_type=f"local/{re.sub(r'[^A-Za-z0-9.]+', '-', task).strip('-')}",
            dataset_name=task,
            dataset_split="test",
            metric_type=row["metric"],
            metric_value=round(100 * row["main_score"], 2),
        )
        for task, row in scored.items()
    ]
    return ModelCardData(
        license=licenses.binding() or stated,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        base_model=student.source or (None if is_on_disk(student.name) else student.name),
        tags=[
            "sentence-transformers",
            "st_jv5",
            "feature-extraction",
            *(["distillation"] if run.teachers else []),
            "matryoshka",
        ],
        model_name=f"st_jv5 {run.recipe.name}",
        eval_results=scores or None,
    )


def is_on_disk(name: str) -> bool:
    """Whether a model is a folder here, so that no one else could follow its name."""
    return Path(resolve_model(name)).is_dir()


def card_facts(run: Run, scores: str, standing: Standing | None = None) -> dict[str, str]:
    """The card's placeholders, from the run's own records.

    Args:
        run: The run.
        scores: Its tables.
        standing: Of its model; None: nothing was measured.
    """
    recipe = run.recipe
    advice = standing.advice if standing else None
    told = read_json(run.folder / "run.json")
    settings = read_json(run.folder / "model" / "st_jv5.json")
    measured = run.folder / "evaluation" / MODEL / "results.json"
    curves = curve_table(read_record(measured.parent)["results"]) if measured.is_file() else None
    student = OwnWay.of(run.folder / "model")
    licenses = Licenses.read(settings["licenses"], "st_jv5.json")
    config = read_json(run.folder / "model" / "config.json")
    dims = settings["matryoshka_dims"]
    bytes_ = sum(path.stat().st_size for path in (run.folder / "model").rglob("*model.safetensors"))
    base = published_name(recipe.student.name, recipe.student.source)
    teachers = ", ".join(as_code(published_name(s.model, s.source)) for s in run.teachers)
    tokens = recipe.teacher.max_tokens if recipe.teacher else 0
    first = "retrieval" if "retrieval" in settings["tasks"] else settings["tasks"][0]
    output = recipe.folder if not recipe.folder.is_absolute() else Path(recipe.folder.name)
    if recipe.student.model:
        origin = f"trained on the frozen {as_code(base)}"
        origin += f" beside {teachers}" if teachers else ""
    else:
        origin = f"distilled from {teachers}" if teachers else f"trained from {as_code(base)}"
    return {
        "name": f"st_jv5 {recipe.name}",
        "base": base,
        "origin": origin,
        "teacher": f" Teacher: {teachers},\ninputs of up to {tokens} tokens." if teachers else "",
        "usage": USAGE["retrieval" if first == "retrieval" else "other"].replace("TASK", first),
        "task": first,
        "parameters": f"{bytes_ / 4e6:.1f}M",
        "width": str(config["hidden_size"]),
        "dims": ", ".join(map(str, dims[:-1])),
        "small": str(dims[0]),
        "tasks": ", ".join(settings["tasks"]),
        "path": (output / "model").as_posix(),
        "layers": str(list(recipe.student.layers))
        if isinstance(recipe.student.layers, tuple)
        else str(recipe.student.layers or "all"),
        "pooling": ENGINES_POOLING[student.pooling_mode()]["said"],
        "prompts": ", ".join(
            f"{as_words(name)} {as_code(text)}" for name, text in student.prompts().items() if text
        )
        or "none",
        "max_tokens": str(recipe.student.max_tokens),
        "precision": told["precision"],
        "data": data_table(run).markdown(),
        "phases": phase_table(run).markdown(),
        "scores": scores,
        "about_scores": about_scores(run, standing.own) if standing else "",
        "curves": f"### Cut, and stored smaller\n\n{curves.markdown()}" if curves else "",
        "licenses": license_table(licenses),
        "command": run.command,
        "version": told["versions"]["st-jv5"]
        + (f", commit {told['commit'][:12]}" if told["commit"] else ""),
        "limits": limits_of(run, standing),
        "advice": f"## Which adapter\n\n{advice.markdown()}" if advice else "",
    }
