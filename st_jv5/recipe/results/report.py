"""The report and the model card, from the records of a run alone."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import asdict

from huggingface_hub import EvalResult, ModelCardData

from st_jv5.evaluation.mteb_encoder import adapter_for
from st_jv5.evaluation.near_far import as_text
from st_jv5.evaluation.page import Cell, Page, Part, Plot, Table, lines
from st_jv5.evaluation.record import read_record
from st_jv5.evaluation.report import curve_table, run_page
from st_jv5.evaluation.samples import Samples, paired_bootstrap
from st_jv5.export.merged import ENGINES_POOLING
from st_jv5.files import read_json, write_json, write_text
from st_jv5.folders.card import as_code, as_words, model_card
from st_jv5.folders.licenses import Licenses
from st_jv5.recipe.context import Run
from st_jv5.recipe.results.measure import MODEL, records_of
from st_jv5.recipe.results.standing import ROUTED, Records, Standing, score
from st_jv5.student.own_way import OwnWay
from st_jv5.task_table import BASE

logger = logging.getLogger("st_jv5.recipe")


def report(run: Run) -> None:
    """Print the tables; write ``report/`` (a page, plots, summary.json) and the model card."""
    folder = run.folder / "report"
    model = read_record(run.folder / "evaluation" / MODEL)
    standing = Standing(run.recipe, records_of(run), model["results"], run.labels)
    resamples = run.recipe.evaluation.resamples
    adapters = list(run.recipe.adapters)
    verdicts = best_adapters(standing.records, adapters, standing.tasks, resamples)
    words: list[Part] = [said.text for said in standing.sentences]
    words += [standing.advice] if standing.advice else []
    summary, every_task = standing.summary(), standing.every_task()
    page = run_page(model)
    page.title = f"st_jv5 {run.recipe.name}"
    own = Page("")
    own.add("In all", *words, *summary)
    own.add("Everyone on every task", *every_task)
    own.add("Each task's own adapter against the best", verdicts)
    own.add("Training", *loss_plots(run))
    page.sections = own.sections + [one for one in page.sections if one[0] != "Scores"]
    page.write(folder)
    write_json(folder / "summary.json", standing.as_json())
    facts = card_facts(run, as_text([*words, *summary, *every_task]))
    card = model_card(facts, card_metadata(run, standing))
    write_text(run.folder / "model" / "README.md", card)
    print(as_text([*summary, *every_task, verdicts, *words]), end="\n\n")
    print(f"model:  {run.folder / 'model'}\nreport: {folder / 'report.html'}")
    for said in standing.sentences:
        if said.is_worse:
            logger.warning("%s", said.text)


def best_adapters(records: Records, adapters: list[str], tasks: list[str], resamples: int) -> Table:
    """For each task: its own adapter against the best of base and the four, paired bootstrap."""
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
    return Table(header, rows)


def title_of(phase: str) -> str:
    """A phase's name for people: ``adapters.retrieval`` is retrieval."""
    return {"stage1": "stage 1", "long": "stage 1, long"}.get(phase, phase.split(".")[-1])


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
        about = f"{title}: the weighted terms of its loss over steps."
        name = f"loss-{title.replace(' ', '-')}"
        terms = {term: curves[term] for term in sorted(curves)}
        plots.append(lines(name, about, terms, "step", "weighted term", title=title))
    return plots


# ------------------------------------------------------------------------------------------ card


def license_table(licenses: Licenses) -> str:
    """What the model was made of, and under which licences."""
    cells: list[list[Cell]] = [
        [kind, as_words(name), as_words(license_)]
        for kind, named in asdict(licenses).items()
        for name, license_ in named.items()
    ]
    return Table(["", "name", "licence"], cells).markdown()


def card_metadata(run: Run, standing: Standing) -> ModelCardData:
    """The card's front matter, with a score per task for the Hub."""
    settings = read_json(run.folder / "model" / "st_jv5.json")
    licenses = Licenses.read(settings["licenses"], "st_jv5.json")
    student = run.recipe.student
    scores = [
        EvalResult(
            task_type=row["type"],
            dataset_type=f"local/{task}",
            dataset_name=task,
            dataset_split="test",
            metric_type=row["metric"],
            metric_value=round(100 * row["main_score"], 2),
        )
        for task, row in standing.sides[ROUTED].items()
    ]
    return ModelCardData(
        license=licenses.binding() or student.license,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        base_model=student.source or student.base,
        tags=[
            "sentence-transformers",
            "st_jv5",
            "feature-extraction",
            "distillation",
            "matryoshka",
        ],
        model_name=f"st_jv5 {run.recipe.name}",
        eval_results=scores or None,
    )


def card_facts(run: Run, scores: str) -> dict[str, str]:
    """The card's placeholders, from the run's own records."""
    recipe = run.recipe
    told = read_json(run.folder / "run.json")
    settings = read_json(run.folder / "model" / "st_jv5.json")
    curves = curve_table(read_record(run.folder / "evaluation" / MODEL)["results"])
    student = OwnWay.of(run.folder / "model")
    licenses = Licenses.read(settings["licenses"], "st_jv5.json")
    config = read_json(run.folder / "model" / "config.json")
    dims = settings["matryoshka_dims"]
    bytes_ = sum(path.stat().st_size for path in (run.folder / "model").rglob("*model.safetensors"))
    data: list[list[Cell]] = []
    for name, spec in recipe.data_sets.items():
        if name in run.rows:
            count = len(run.rows[name])
            data.append([as_words(name), as_words(spec.named), as_words(spec.license), count])
    phases: list[list[Cell]] = []
    for name, phase in recipe.phases.items():
        seconds = read_json(run.log_of(name))["seconds"]
        batch = f"{phase.devices} x {phase.batch_size}" if phase.devices > 1 else phase.batch_size
        rate = f"{phase.learning_rate:g}"
        phases.append([title_of(name), phase.steps, str(batch), rate, f"{seconds:.0f}"])
    return {
        "name": f"st_jv5 {recipe.name}",
        "base": recipe.student.source or recipe.student.base,
        "teacher": ", ".join(spec.source or spec.model for spec in run.teachers),
        "parameters": f"{bytes_ / 4e6:.1f}M",
        "width": str(config["hidden_size"]),
        "dims": ", ".join(map(str, dims[:-1])),
        "small": str(dims[0]),
        "tasks": ", ".join(settings["tasks"]),
        "path": f"{run.folder}/model",
        "layers": str(list(recipe.student.layers))
        if isinstance(recipe.student.layers, tuple)
        else str(recipe.student.layers or "all"),
        "pooling": ENGINES_POOLING[student.pooling_mode()]["said"],
        "prompts": ", ".join(
            f"{as_words(name)} {as_code(text)}" for name, text in student.prompts().items() if text
        )
        or "none",
        "max_tokens": str(recipe.student.max_tokens),
        "teacher_tokens": str(recipe.teacher.max_tokens),
        "precision": told["precision"],
        "data": Table(["data set", "source", "license", "rows"], data).markdown(),
        "phases": Table(["phase", "steps", "batch", "learning rate", "seconds"], phases).markdown(),
        "scores": scores,
        "kinds": ", ".join(sorted(recipe.text_kinds)),
        "curves": f"### Cut, and stored smaller\n\n{curves.markdown()}" if curves else "",
        "licenses": license_table(licenses),
        "command": f"python -m training.run training/recipes/{recipe.name}.yaml",
        "commit": (told["commit"] or "unknown")[:12],
        "limits": recipe.limits.strip(),
    }
