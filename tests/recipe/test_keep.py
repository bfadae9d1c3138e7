"""How much of the start stays in a base, how strongly an adapter acts, and what is replayed."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from st_jv5.cli import train as main
from st_jv5.recipe import keep, train
from st_jv5.recipe.context import Run
from st_jv5.recipe.keep import best, shares_kept
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.results import measure
from st_jv5.recipe.strict import RecipeError
from tests.recipe.test_config import DEMO

WHOLE = ["student.layers=null"]
REPLAY = "stage1.replay={wordnet-glosses: 2}"


@pytest.fixture
def choose(tmp_path, monkeypatch):
    """``choose(scores, candidates)``; scores: share -> (near, far), 1.0 being the start."""

    def chosen(scores: dict[float, tuple[float, float]], candidates: tuple[float, ...]) -> float:
        def means(run, model, task, folder):
            near, far = scores[model]
            return {"near": near, "far": far, "both": (near + far) / 2}

        monkeypatch.setattr(measure, "validation_means", means)
        run = Run(load_recipe(DEMO))
        return best(run, candidates, 1.0, lambda share: share, tmp_path, "keep", "base")

    return chosen


def test_the_best_mean_is_taken_of_those_that_do_not_hurt_far_text(choose, tmp_path):
    scores = {0.0: (90, 55), 0.25: (80, 60), 0.5: (72, 61), 1.0: (70, 58)}
    assert choose(scores, (0.0, 0.25, 0.5)) == 0.25
    told = json.loads((tmp_path / "keep.json").read_text())
    assert told["chosen"] == 0.25
    assert told["validation"]["0"] == {"near": 90, "far": 55, "both": 72.5}
    assert set(told["validation"]) == {"0", "0.25", "0.5", "1"}


def test_where_all_hurt_far_text_the_least_hurt_is_taken(choose):
    assert choose({0.0: (90, 55), 0.5: (60, 57), 1.0: (50, 58)}, (0.0, 0.5)) == 0.5


def test_a_family_of_far_tasks_is_not_lost_in_a_better_mean(tmp_path, monkeypatch):
    scores = {
        0.25: {"both": 70.0, "far": 63.0, "far clustering": 70.0, "far retrieval": 56.0},
        0.5: {"both": 69.0, "far": 61.0, "far clustering": 65.0, "far retrieval": 57.6},
        1.0: {"both": 60.0, "far": 60.0, "far clustering": 62.0, "far retrieval": 58.0},
    }
    monkeypatch.setattr(measure, "validation_means", lambda run, model, *args: scores[model])
    run = Run(load_recipe(DEMO))
    assert best(run, (0.25, 0.5), 1.0, lambda share: share, tmp_path, "keep", "base") == 0.5


def test_a_bases_families_of_far_tasks_are_told(tmp_path, monkeypatch):
    run = Run(load_recipe(DEMO))
    tasks = measure.chosen_tasks(run, "validation")
    rows = [{"task": one.metadata.name, "main_score": 0.5} for one in tasks]
    monkeypatch.setattr(measure, "evaluate", lambda *args, **kwargs: rows)
    monkeypatch.setattr(measure, "MTEBEncoder", lambda *args, **kwargs: None)
    means = measure.validation_means(run, None, "base", tmp_path)
    assert {"near", "far", "both", "far retrieval", "far clustering"} < set(means)
    assert set(means.values()) == {50.0}


def test_a_single_candidate_is_not_measured(choose):
    assert choose({}, (0.5,)) == 0.5


@pytest.mark.parametrize(
    ("overrides", "shares"),
    [
        (WHOLE, (0.5,)),
        ([], (0.0,)),  # cut layers: the start is no model to keep
        ([*WHOLE, "student.pooling=lasttoken"], (0.0,)),
        ([*WHOLE, "student.prompts=paper"], (0.0,)),
        ([*WHOLE, "keep=[0, 0.75]"], (0.0, 0.75)),
    ],
)
def test_half_of_a_whole_embedding_model_is_kept_where_the_recipe_says_nothing(overrides, shares):
    assert shares_kept(Run(load_recipe(DEMO, overrides))) == shares


def test_half_of_a_plain_backbone_is_not_kept(backbones):
    recipe = load_recipe(DEMO, [*WHOLE, f"student.base={backbones['bert']}"])
    assert shares_kept(Run(recipe)) == (0.0,)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("keep=[1]", "keep must lie in 0..1, below 1, not 1"),
        ("keep=[]", "keep is empty"),
        ("adapters.clustering.strengths=[-1]", "strengths must be 0 or more, not -1"),
        ("adapters.clustering.strengths=[]", "strengths is empty"),
        ("stage1.replay={nope: 1}", "stage1.replay: unknown data set 'nope'"),
        ("stage1.replay={wordnet-lemmas: 1}", "wordnet-lemmas: stage1.data has it already"),
        ("stage1.replay={wordnet-similarity: 1}", "synset_pairs names no columns to replay"),
        ("stage1.replay={wordnet-glosses: 0}", "the weight must be above 0, not 0"),
        ("stage1.max_epochs=0", "stage1.max_epochs must be above 0"),
    ],
)
def test_settings_that_do_not_fit_are_named(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(DEMO, [override])


def test_replayed_batches_are_distilled_alone_and_the_projection_is_fitted(
    tiny, tmp_path, monkeypatch
):
    """Stage 1 with InfoNCE on its own sets: a single text could not train it."""
    recipe = tiny(tmp_path, steps=6)
    seen = []
    forward = train.CompositeLoss.forward

    def watched(self, features, labels=None):
        columns = list(features)
        seen.append((len(columns), tuple(self.losses)))
        return forward(self, columns, labels)

    monkeypatch.setattr(train.CompositeLoss, "forward", watched)
    monkeypatch.setattr(
        "st_jv5.recipe.run.try_phases", lambda *args: None
    )  # steps alone are counted
    settings = [
        "student.layers=null",
        "data_sets.wordnet-glosses.limit=900",
        "stage1.replay={wordnet-glosses: 5}",
        "stage1.loss={infonce_weight: 0.2}",
        "keep=[0.5]",
    ]
    given = [argument for one in settings for argument in ("--set", one)]
    main([recipe, *given, "--only", "teacher"])
    main([recipe, *given, "--only", "stage1"])
    assert (1, ("distill",)) in seen
    assert (2, ("infonce", "distill")) in seen
    assert {columns for columns, _ in seen} == {1, 2}
    out = tmp_path / "out"
    end = SentenceTransformer(str(out / "stage1" / "model"))
    base = SentenceTransformer(str(out / "base" / "model"))
    projection = end[0].projection.linear.weight
    assert not torch.allclose(projection, torch.eye(384), atol=0.1)
    start = Run(load_recipe(recipe, settings)).new_student()
    vectors = [one.encode(["a text", "another"]) for one in (start, base, end)]
    apart = [np.linalg.norm(one - other) for one, other in pairwise(vectors)]
    assert np.linalg.norm(vectors[0] - vectors[2]) > max(apart) > 0
    assert base[0].projection is not None


def test_too_few_texts_to_fit_leave_the_identity_and_say_so(tiny, tmp_path, caplog):
    recipe = tiny(tmp_path)
    main([recipe, "--only", "teacher"])
    main([recipe, "--only", "stage1"])
    assert "texts are too few to fit a projection" in caplog.text
    assert Path(tmp_path / "out" / "base" / "model").is_dir()
    assert keep.SAFE == 0.5


def test_steps_that_want_more_epochs_than_allowed_are_refused_before_the_teacher_runs(
    tiny, tmp_path
):
    recipe = tiny(tmp_path, steps=7, max_epochs=0.25)  # 24 rows, 4 a batch: at least one each
    with pytest.raises(
        SystemExit, match=r"retrieval.steps: 7 steps, but its data sets hold 2 batches"
    ):
        main([recipe, "--only", "teacher"])
    assert not (tmp_path / "teacher").exists()
