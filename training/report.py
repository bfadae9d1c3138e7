"""Tables, plots and the model card, from the records of a run alone."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from eval.samples import Samples, paired_bootstrap
from st_jv5.evaluation.mteb_encoder import adapter_for
from st_jv5.files import read_json, write_json, write_text
from st_jv5.hub import model_card
from st_jv5.tasks import BASE
from training.context import Run
from training.measure import BEFORE, TEACHER, who_order

Records = dict[str, dict[str, Any]]


def report(run: Run) -> None:
    """Print the table, and write ``report/``: table.md, summary.json, three plots; and the card."""
    folder = run.folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    evaluation = run.folder / "evaluation"
    records: Records = {
        path.parent.name: read_json(path)["tasks"] for path in evaluation.glob("*/results.json")
    }
    adapters = list(run.recipe.adapters)
    who = [name for name in who_order(run) if name in records]
    tasks = list(records[who[0]])
    table = score_table(records, who, tasks)
    kept = kept_of_teacher(records, tasks) if TEACHER in records else ""
    verdicts = best_adapters(records, adapters, tasks, run.recipe.evaluation.resamples)
    text = f"{table}\n\n{kept}\n\n{verdicts}\n"
    write_text(folder / "table.md", text)
    write_json(
        folder / "summary.json",
        {name: {task: records[name][task]["main_score"] for task in tasks} for name in who},
    )
    plot_losses(run, folder / "losses.png")
    plot_dims(records, adapters, folder / "dims.png")
    plot_matrix(records, who, tasks, folder / "matrix.png")
    card = model_card(card_facts(run, table + "\n\n" + kept))
    write_text(run.folder / "model" / "README.md", card)
    print(text)
    print(f"model:  {run.folder / 'model'}\nreport: {folder}")


def score(records: Records, who: str, task: str) -> float:
    """Main score in percent."""
    return 100 * float(records[who][task]["main_score"])


def score_table(records: Records, who: list[str], tasks: list[str]) -> str:
    """Who x task, Markdown; the adapter that a task is routed to is bold."""
    lines = [
        "| | " + " | ".join(tasks) + " |",
        "|---|" + "---|" * len(tasks),
        "| metric | " + " | ".join(str(records[who[0]][t]["metric"]) for t in tasks) + " |",
    ]
    for name in who:
        cells = []
        for task in tasks:
            own = adapter_for(records[name][task]["type"]) == name
            cells.append(
                f"**{score(records, name, task):.1f}**"
                if own
                else f"{score(records, name, task):.1f}"
            )
        label = {BASE: "base (stage 1)"}.get(name, name)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def kept_of_teacher(records: Records, tasks: list[str]) -> str:
    """The base's and the routed model's share of the teacher's score."""
    lines = ["| % of the teacher | " + " | ".join(tasks) + " |", "|---|" + "---|" * len(tasks)]

    def line(label: str, pick: Any) -> str:
        shares = [100 * score(records, pick(t), t) / score(records, TEACHER, t) for t in tasks]
        return f"| {label} | " + " | ".join(f"{share:.1f}" for share in shares) + " |"

    lines.append(line(BEFORE, lambda task: BEFORE))
    lines.append(line("base (stage 1)", lambda task: BASE))
    lines.append(line("routed", lambda task: adapter_for(records[BASE][task]["type"])))
    return "\n".join(lines)


def best_adapters(records: Records, adapters: list[str], tasks: list[str], resamples: int) -> str:
    """For each task: its own adapter against the best of base and the four, paired bootstrap."""
    lines = [
        "| task | adapter | score | best of base and adapters | difference, 95% | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for task in tasks:
        own = adapter_for(records[BASE][task]["type"])
        if own not in adapters:
            continue
        best = max([BASE, *adapters], key=lambda name: score(records, name, task))
        cells = [task, own, f"{score(records, own, task):.1f}"]
        if best == own:
            cells += [own, "", "the best"]
        else:
            one, other = (Samples(**records[name][task]["samples"]) for name in (own, best))
            low, high = (100 * bound for bound in paired_bootstrap(one, other, resamples))
            verdict = "worse" if high < 0 else "within noise of the best"
            cells += [
                f"{best} {score(records, best, task):.1f}",
                f"{low:+.1f} to {high:+.1f}",
                verdict,
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------- plots


def plot_losses(run: Run, path: Any) -> None:
    """Each phase's terms over its steps."""
    logs = {"stage 1": run.folder / "stage1" / "log.json"} | {
        task: run.folder / "adapters" / task / "log.json" for task in run.recipe.adapters
    }
    figure, axes = plt.subplots(1, len(logs), figsize=(3.4 * len(logs), 3), squeeze=False)
    for axis, (title, log) in zip(axes[0], logs.items(), strict=True):
        curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
        skip = {"loss", "grad_norm", "learning_rate", "epoch", "step"}
        for entry in read_json(log)["history"]:
            if "loss" in entry:
                for term in set(entry) - skip:
                    curves[term].append((entry["step"], entry[term]))
        for term, points in sorted(curves.items()):
            axis.plot(*zip(*points, strict=True), label=term)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.legend()
    axes[0][0].set_ylabel("weighted term")
    _save(figure, path)


def plot_dims(records: Records, adapters: list[str], path: Any) -> None:
    """Each adapter's own tasks by dim."""
    figure, axis = plt.subplots(figsize=(6, 4))
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for name, tasks in records.items():
        adapter = name.split("@")[0]
        for task, found in tasks.items():
            if adapter in adapters and adapter_for(found["type"]) == adapter:
                curves[task][found["dim"]] = 100 * found["main_score"]
    for task, points in sorted(curves.items()):
        dims = sorted(points)
        axis.plot(dims, [points[dim] for dim in dims], marker="o", label=task)
    axis.set_xscale("log", base=2)
    axis.set_xlabel("dimensions")
    axis.set_ylabel("main score, %")
    axis.legend(fontsize=7)
    _save(figure, path)


def plot_matrix(records: Records, who: list[str], tasks: list[str], path: Any) -> None:
    """Everyone on every task, coloured by the share of the best in the column."""
    scores = [[score(records, name, task) for task in tasks] for name in who]
    best = [max(column) for column in zip(*scores, strict=True)]
    shares = [[value / top for value, top in zip(row, best, strict=True)] for row in scores]
    figure, axis = plt.subplots(figsize=(1.1 * len(tasks) + 2, 0.5 * len(who) + 2))
    axis.imshow(shares, vmin=0.5, vmax=1, aspect="auto", cmap="viridis")
    for y, row in enumerate(scores):
        for x, value in enumerate(row):
            ink = "black" if shares[y][x] > 0.85 else "white"
            axis.text(x, y, f"{value:.1f}", ha="center", va="center", color=ink, fontsize=8)
    axis.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
    axis.set_yticks(range(len(who)), who)
    _save(figure, path)


def _save(figure: Any, path: Any) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ------------------------------------------------------------------------------------------ card


def card_facts(run: Run, scores: str) -> dict[str, str]:
    """The card's placeholders, from the run's own records."""
    recipe = run.recipe
    told = read_json(run.folder / "run.json")
    settings = read_json(run.folder / "model" / "st_jv5.json")
    config = read_json(run.folder / "model" / "config.json")
    dims = settings["matryoshka_dims"]
    bytes_ = sum(path.stat().st_size for path in (run.folder / "model").rglob("*model.safetensors"))
    data = ["| data set | source | license | rows |", "|---|---|---|---|"]
    for name, spec in recipe.data_sets.items():
        if name in run.rows:
            rows = spec.limit if spec.kind == "synset_pairs" else len(run.rows[name])
            data.append(f"| {name} | {spec.path} | {spec.license} | {rows} |")
    phases = ["| phase | steps | batch | learning rate | seconds |", "|---|---|---|---|---|"]
    for title, phase, log in [
        ("stage 1", recipe.stage1, run.folder / "stage1" / "log.json"),
        *(
            (task, phase, run.folder / "adapters" / task / "log.json")
            for task, phase in recipe.adapters.items()
        ),
    ]:
        seconds = read_json(log)["seconds"]
        cells = (title, phase.steps, phase.batch_size, f"{phase.learning_rate:g}", f"{seconds:.0f}")
        phases.append("| " + " | ".join(map(str, cells)) + " |")
    return {
        "name": f"st_jv5 {recipe.name}",
        "license": recipe.student.license,
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
        "max_tokens": str(recipe.student.max_tokens),
        "teacher_tokens": str(recipe.teacher.max_tokens),
        "precision": told["precision"],
        "data": "\n".join(data),
        "phases": "\n".join(phases),
        "scores": scores,
        "command": f"python -m training.run training/recipes/{recipe.name}.yaml",
        "commit": (told["commit"] or "unknown")[:12],
        "limits": (
            "Trained for minutes on a few thousand English encyclopaedia openings and dictionary "
            "definitions: a demonstration of the recipe, not a general model. The scores are on "
            "the same kinds of text."
            if recipe.name == "demo"
            else "See the scores."
        ),
    }
