"""Ablations: every run once, resumable, and told apart by more than noise."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from eval.studies import ablate
from eval.studies.ablate import Ablator, fresh_backbone, load_plan, main, served_at
from eval.studies.ablate_report import Ablation, ablation_page
from st_jv5.recipe.done import save_whole
from st_jv5.recipe.load import load_recipe
from tests.recipe.test_config import DEMO

ROOT = Path(__file__).parent.parent.parent
SHIPPED = ROOT / "eval" / "studies" / "ablations.yaml"


@pytest.fixture
def plan(smaller, tmp_path) -> Path:
    """Two steps of one layer on a few rows, and a theta run of two small layers."""
    tree = smaller(yaml.safe_load(DEMO.read_text()))
    tree["student"] |= {"layers": [0], "max_tokens": 12, "matryoshka_dims": [32, 384]}
    tree["teacher"]["max_tokens"] = 12
    for spec in tree["data_sets"].values():
        spec["limit"] = 24
    small = {"steps": 2, "batch_size": 4, "checkpoint_steps": 1, "warmup_steps": 0}
    tree["stage1"] |= small
    tree["adapters"] = {"retrieval": tree["adapters"]["retrieval"] | small | {"average": []}}
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(tree))
    theta = smaller(yaml.safe_load((ROOT / "eval" / "studies" / "theta.yaml").read_text()))
    theta["stage1"] |= small | {"batch_sizes": {}, "max_tokens": {}}
    theta["student"] |= {"max_tokens": 32, "matryoshka_dims": [16]}
    theta["teacher"]["max_tokens"] = 12
    for spec in theta["data_sets"].values():
        spec["limit"] = 24
    (tmp_path / "theta.yaml").write_text(yaml.safe_dump(theta))
    sts = {"tasks": ["WordNetSTS"]}
    small_plan = {
        "recipes": {
            "demo": {"path": str(tmp_path / "demo.yaml")},
            "theta": {"path": str(tmp_path / "theta.yaml")},
        },
        "seeds": [0],
        "measures": {
            "stage1": sts | {"dims": [384, 32]},
            "adapter": sts | {"precisions": ["float32", "binary"]},
            "long": {"tasks": ["OfficeLongRetrieval"], "max_tokens": [8, 32], "thetas": [10, 1000]},
        },
        "runs": {
            "distill": {"phase": "stage1", "at_steps": [1]},
            "scores": {"phase": "stage1", "objective": "scores", "at_steps": [1]},
            "all": {
                "phase": "retrieval",
                "objective": "retrieval",
                "base": "distill",
                "measure": "adapter",
            },
            "low": {"phase": "stage1", "recipe": "theta", "theta": 10, "measure": "long"},
        },
        "ablations": {
            "a": {"title": "A", "over": "step", "runs": ["distill", "scores"], "paper": "p"},
            "c": {"title": "C", "over": "precision", "runs": ["all"], "paper": "p"},
            "e": {"title": "E", "over": "dim", "runs": ["distill", "scores"], "paper": "p"},
            "f": {
                "title": "F",
                "over": "max_tokens and theta",
                "runs": ["low"],
                "paper": "p",
            },
        },
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(small_plan, sort_keys=False))
    return path


def test_each_run_is_trained_once_goes_on_and_leaves_one_json(
    plan, tmp_path, small_tasks, monkeypatch, capsys
):
    small = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 16}
    monkeypatch.setattr(ablate, "FRESH", ablate.FRESH | small)
    trained: list[str] = []
    train = ablate.train

    def counted(run, student, task, phase, checkpoints, loss, callbacks):
        trained.append(checkpoints.parent.name)
        if trained == ["distill-seed0", "scores-seed0"]:
            raise KeyboardInterrupt  # begun, and not trained
        train(run, student, task, phase, checkpoints, loss, callbacks)

    monkeypatch.setattr(ablate, "train", counted)
    out = tmp_path / "out" / "ablate"
    command = ["--plan", str(plan), "--output", str(out)]
    with pytest.raises(SystemExit, match="stopped; run the same command again"):
        main(command)
    tree = yaml.safe_load(plan.read_text())
    tree["runs"]["scores"]["learning_rate"] = 1e-5
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    with pytest.raises(SystemExit, match="scores-seed0 was begun with other settings"):
        main(["--plan", str(tmp_path / "other.yaml"), "--output", str(out)])
    main(command)
    assert trained[1:] == ["scores-seed0", "scores-seed0", "all-seed0", "low-seed0"]
    results = {path.stem: json.loads(path.read_text()) for path in (out / "runs").glob("*.json")}
    assert sorted(results) == ["all-seed0", "distill-seed0", "low-seed0", "scores-seed0"]
    points = {
        name: {
            (r["step"], r["dim"], r["precision"], r["theta"], r["max_tokens"]) for r in one["rows"]
        }
        for name, one in results.items()
    }
    assert points["distill-seed0"] == {
        (1, 384, "float32", 0, 12),
        (2, 384, "float32", 0, 12),
        (2, 32, "float32", 0, 12),
    }
    assert points["all-seed0"] == {(2, 384, p, 0, 12) for p in ("float32", "binary")}
    assert points["low-seed0"] == {
        (2, 16, "float32", theta, tokens) for theta in (10, 1000) for tokens in (8, 32)
    }
    assert {entry["distill"] > 0 for entry in results["distill-seed0"]["history"][:-1]} == {True}
    assert results["all-seed0"]["settings"]["base"]["run"]["phase"] == "stage1"
    assert not list((out / "runs").glob("*/checkpoints"))
    page = (out / "report.md").read_text()
    assert page.count("| scores |") == 4  # scores and differences, over steps and over dims
    assert "| low, served at 1,000 |" in page
    assert (out / "a-WordNetSTS.svg").exists()
    # A third run trains nothing; other settings do not mix with these results.
    main(command)
    assert len(trained) == 5
    with pytest.raises(SystemExit, match=r"distill-seed0.json was made with other settings"):
        main([*command, "--set", "demo.stage1.learning_rate=1.0e-5"])
    with pytest.raises(SystemExit, match=r"--set wants RECIPE.a.b=value with one of demo, theta"):
        main([*command, "--set", "stage1.steps=1"])
    with pytest.raises(SystemExit, match=r"no ablation 'z'; known: a, c, e, f"):
        main([*command, "--only", "z"])


def test_the_shipped_plan_loads_and_covers_the_paper(tmp_path):
    plan = load_plan(SHIPPED)
    assert list(plan.ablations) == ["a", "b", "c", "d", "e", "f"]
    assert len(plan.seeds) >= 2
    for name, spec in plan.runs.items():
        recipe = Ablator(plan, tmp_path).recipe(spec.recipe, 0)
        assert spec.phase == "stage1" or spec.phase in recipe.adapters, name
    used = {run for one in plan.ablations.values() for run in one.runs}
    assert used == set(plan.runs)
    weights = [
        tuple(
            plan.runs[run].options.get(f"{term}_weight", 1) != 0
            for term in ("infonce", "distill", "gor")
        )
        for run in plan.ablations["c"].runs
    ]
    assert len(set(weights)) == 6
    load_recipe(ROOT / "eval" / "studies" / "theta.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ablations", "a", "runs", ["distil"]), "ablations.a.runs: unknown run 'distil'"),
        (("runs", "all", "base", "none"), "runs.all.base: unknown run 'none'"),
        (("runs", "all", "base", ""), "runs.all: an adapter needs a base"),
        (("runs", "all", "measure", "m"), "runs.all.measure: unknown measure 'm'"),
        (("runs", "all", "recipe", "r"), "runs.all.recipe: unknown recipe 'r'"),
        (("runs", "all", "objectiv", "x"), "unknown setting runs.all.objectiv; did you mean"),
    ],
)
def test_a_plan_that_cannot_be_run_is_named(plan, change, message):
    tree = yaml.safe_load(plan.read_text())
    *path, last, value = change
    place = tree
    for key in path:
        place = place[key]
    place[last] = value
    plan.write_text(yaml.safe_dump(tree))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_plan(plan)


def test_a_model_served_at_another_theta_is_one_built_at_that_theta(tmp_path, texts, monkeypatch):
    import st_jv5

    monkeypatch.setattr(
        ablate, "FRESH", ablate.FRESH | {"hidden_size": 16, "intermediate_size": 16}
    )
    for theta in (100, 5000):
        fresh_backbone(tmp_path / str(theta), seed=0, theta=theta)
        save_whole(st_jv5.new_student(tmp_path / str(theta)), tmp_path / "m" / str(theta))
    served = SentenceTransformer(str(served_at(tmp_path / "m" / "100", 5000)))
    built = SentenceTransformer(str(tmp_path / "m" / "5000")).encode(texts)
    np.testing.assert_array_equal(served.encode(texts), built)
    assert (
        np.abs(SentenceTransformer(str(tmp_path / "m" / "100")).encode(texts) - built).max() > 1e-4
    )


# ------------------------------------------------------------------------------- what is told


def result(values: dict[str, np.ndarray], step: int = 1) -> dict:
    """A run's JSON: precision -> per-query values."""
    rows = [
        {
            "task": "T",
            "metric": "ndcg_at_10",
            "step": step,
            "dim": 8,
            "precision": precision,
            "theta": 0,
            "max_tokens": 8,
            "main_score": float(found.mean()),
            "samples": {"statistic": "mean", "values": found.tolist(), "gold": None},
        }
        for precision, found in values.items()
    ]
    return {"rows": rows, "seconds": {"train": 60.0}}


def test_differences_are_of_the_seeds_means_and_tell_noise_from_more():
    draw = np.random.default_rng(0)
    base = draw.random(200)

    def seeds(shift: float) -> list[dict]:
        return [result({"float32": base + shift + 0.02 * draw.standard_normal(200)}) for _ in "ab"]

    results = {"one": seeds(0), "same": seeds(0), "up": seeds(0.05), "down": seeds(-0.05)}
    ablation = Ablation("title", tuple(results), "paper")
    text = ablation_page({"x": ablation}, results, [0, 1]).markdown()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "within noise" in rows["same"]
    assert re.search(r"\+[45]\.\d \(\+[45].* to \+[45].*\) better", rows["up"])
    assert re.search(r"-[45]\.\d \(-[45].* to -[45].*\) worse", rows["down"])
    both = [f"{100 * one['rows'][0]['main_score']:.1f}" for one in results["one"]]
    assert f"| one | {both[0]} / {both[1]} |" in text
    assert "Training and measuring took 8 minutes" in text


def test_what_binary_loses_is_compared_query_by_query():
    draw = np.random.default_rng(0)
    base = draw.random(300)
    results = {
        "with": [result({"float32": base, "binary": base - 0.02})],
        "without": [
            result({"float32": base + 0.1, "binary": base + 0.1 - 0.04 * draw.random(300) - 0.02})
        ],
    }
    ablation = Ablation("title", tuple(results), "paper", "precision")
    text = ablation_page({"d": ablation}, results, [0]).markdown()
    lost = text[text.index("what is lost against float32") :]
    assert "| with | -2.0 |" in lost
    assert re.search(r"\| without \| -4\.\d \(-2.* to -1.* against with: worse\)", lost)
