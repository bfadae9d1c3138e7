"""What each idea for an adapter brings on a recipe's finished base, beside that base.

    python -m eval.studies.adapter_trials             # adapter_trials.yaml, into out/adapters
    python -m eval.studies.adapter_trials --only "clustering: as it was" --set teacher.model=PATH
    python -m eval.studies.adapter_trials --table     # of what is there

An arm is a phase of the recipe with changes. Its adapter is trained on the base of ``--base``, and
scored on the validation split at several strengths: near and far, with labels that the recipe
trains on and with others. An arm that is scored is not trained again.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from sentence_transformers import SentenceTransformer
from transformers.trainer_utils import set_seed

import st_jv5
from st_jv5 import cli
from st_jv5.adapters import Adapter, load_adapter, save_adapter
from st_jv5.evaluation.mteb_encoder import MTEBEncoder, adapter_for
from st_jv5.evaluation.near_far import labels_are_new, near_and_far
from st_jv5.evaluation.page import Cell, Table
from st_jv5.evaluation.scoring import Settings, evaluate
from st_jv5.files import read_json, write_json
from st_jv5.recipe.config import fingerprint
from st_jv5.recipe.context import Run
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.results.measure import chosen_tasks
from st_jv5.recipe.run import settings_of
from st_jv5.recipe.strict import RecipeError, build
from st_jv5.recipe.train import train
from st_jv5.task_table import BASE, TASKS


@dataclass(frozen=True)
class Arm:
    """One adapter."""

    task: str
    """Whose phase it is."""
    set: tuple[str, ...] = ()
    """``a.b=value`` on top of the recipe, where ``phase.`` stands for ``adapters.TASK.``."""


@dataclass(frozen=True)
class Trials:
    """The whole of adapter_trials.yaml."""

    recipe: str
    """Relative to the checkout."""
    arms: dict[str, Arm]
    strengths: tuple[float, ...] = (0.5, 1.0)
    families: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Task -> the families of tasks that its arms are scored on; else its own."""

    def changes(self, arm: str) -> list[str]:
        """What an arm sets on top of the recipe."""
        own = self.arms.get(arm, Arm(BASE))
        return [one.replace("phase.", f"adapters.{own.task}.", 1) for one in own.set]

    def families_of(self, arm: str) -> tuple[str, ...]:
        """The families that an arm is scored on; the base is on all."""
        if arm == BASE:
            return tuple(TASKS)
        task = self.arms[arm].task
        return self.families.get(task, (task,))


def file_of(output: Path, arm: str) -> Path:
    """The scores of one arm."""
    return output / f"{arm.replace(': ', '-').replace(' ', '-')}.json"


def score(trials: Trials, arm: str, base: Path, output: Path, overrides: Sequence[str]) -> None:
    """Train and score one arm, unless its JSON is there."""
    trial = trials.arms.get(arm, Arm(BASE))
    changes = trials.changes(arm)
    run = Run(load_recipe(trials.recipe, [f"output={output}", *changes, *overrides]))
    phase = run.recipe.adapters.get(trial.task)
    settings = [phase and settings_of(run.recipe, phase), trials.strengths, str(base)]
    made, scored = fingerprint(settings), file_of(output, arm)
    if scored.exists():
        if read_json(scored)["fingerprint"] != made:
            raise RecipeError(f"{scored} was made with other settings; remove it")
        return
    started = time.time()
    model = SentenceTransformer(str(base))
    adapters: dict[float, Adapter | None] = {0.0: None}
    if phase is not None:
        set_seed(run.recipe.seed)
        st_jv5.add_task(
            model, trial.task, rank=phase.rank, alpha=phase.alpha, dropout=phase.dropout
        )
        train(run, model, trial.task, phase, scored.with_suffix("") / "checkpoints")
        save_adapter(model, trial.task, scored.with_suffix("") / "adapter")
        adapter = Adapter.load(scored.with_suffix("") / "adapter")
        adapters = {strength: adapter.scaled(strength) for strength in trials.strengths}
    seconds = time.time() - started
    tasks = [
        task
        for task in chosen_tasks(run, "validation")
        if adapter_for(task.metadata.type) in trials.families_of(arm)
    ]
    means = {}
    for strength, scaled in adapters.items():
        model = SentenceTransformer(str(base))
        if scaled is not None:
            load_adapter(model, scaled)
        folder = scored.with_suffix("") / f"strength-{strength:g}"
        with run.forwards():
            encoder, name = MTEBEncoder(model, remember=True), trial.task
            rows = evaluate(encoder, tasks, folder, Settings(name), label=arm)
        means[f"{strength:g}"] = {str(row["task"]): 100 * row["main_score"] for row in rows}
    labels = {kind: sorted(names) for kind, names in run.labels.items()}
    write_json(
        scored,
        {"fingerprint": made, "scores": means, "seconds": round(seconds), "labels": labels},
    )


def groups_of(
    run: Run, tasks: Sequence[str], labels: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """``classification, far, new labels`` and the like -> tasks."""
    types = {task.metadata.name: task.metadata.type for task in chosen_tasks(run, "validation")}
    groups: dict[str, list[str]] = defaultdict(list)
    for side, own in near_and_far(tasks, run.recipe.text_kinds).items():
        for task in own:
            new = labels_are_new(task, labels)
            told = "" if new is None else ", new labels" if new else ", seen labels"
            groups[f"{adapter_for(types[task])}, {side}{told}"].append(task)
    return groups


def table(trials: Trials, run: Run, arms: Sequence[str], output: Path) -> Table:
    """What each arm and strength is above the base, by group of tasks, in points."""
    base = read_json(file_of(output, BASE))["scores"]["0"]
    by_arm = {arm: read_json(file_of(output, arm)) for arm in arms if file_of(output, arm).exists()}
    groups: dict[str, list[str]] = {}
    for record in by_arm.values():
        groups |= groups_of(run, [*base], record["labels"])
    rows: list[list[Cell]] = [
        ["base", "", *(float(np.mean([base[t] for t in group])) for group in groups.values())]
    ]
    for arm, record in by_arm.items():
        for strength, scores in record["scores"].items() if arm != BASE else ():
            cells: list[Cell] = []
            for group in groups.values():
                known = [scores[t] - base[t] for t in group if t in scores]
                cells.append(f"{np.mean(known):+.1f}" if known else "")
            rows.append([arm, strength, *cells])
    return Table(["", "strength", *groups], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", default=str(Path(__file__).parent / "adapter_trials.yaml"))
    parser.add_argument("--base", default="out/laptop/base/model", help="folder of the base")
    parser.add_argument("--only", nargs="+", help="these arms alone")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value")
    parser.add_argument("--output", default="out/adapters")
    parser.add_argument("--table", action="store_true", help="show what is there")
    parser.set_defaults(run=run, debug=False, resumes=True)
    cli.run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    """Run what is asked for, and show it."""
    text = Path(args.trials).read_text(encoding="utf-8")
    trials = build(Trials, yaml.safe_load(text), "")
    arms = args.only or [BASE, *trials.arms]
    if unknown := [arm for arm in arms if arm not in (BASE, *trials.arms)]:
        raise RecipeError(f"no arm {unknown[0]!r}; known: {', '.join(trials.arms)}")
    output = Path(args.output)
    for arm in () if args.table else arms:
        score(trials, arm, Path(args.base), output, args.set)
    if file_of(output, BASE).exists():
        run = Run(load_recipe(trials.recipe, args.set))
        print(table(trials, run, arms, output).markdown())


if __name__ == "__main__":
    main()
