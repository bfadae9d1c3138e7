"""Theta: one while training, one when served, both known to the model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel

import st_jv5
from st_jv5.backbone import rope
from tests.conftest import with_adapters

ROTARY = ("qwen3", "eurobert")


def built_at(backbone: str, folder, theta: float) -> str:
    """The same weights in a folder whose config has another theta."""
    config = AutoConfig.from_pretrained(backbone)
    config.rope_parameters["rope_theta"] = theta
    AutoModel.from_pretrained(backbone, config=config).save_pretrained(folder)
    SentenceTransformer(backbone).tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ROTARY)
def test_theta_set_equals_a_backbone_built_at_that_theta(kind, backbones, tmp_path, texts):
    expected = st_jv5.new_student(built_at(backbones[kind], tmp_path, 77.0)).encode(texts)
    student = st_jv5.new_student(backbones[kind])
    before = student.encode(texts)
    rope.serve_at(student, 77.0)
    assert np.array_equal(student.encode(texts), expected)
    assert not np.allclose(before, expected, atol=1e-3)
    rope.serve_at(student, rope.theta_of(AutoConfig.from_pretrained(backbones[kind])))
    assert np.array_equal(student.encode(texts), before)


@pytest.mark.parametrize("kind", ROTARY)
def test_a_model_knows_what_each_task_was_trained_at_and_what_it_is_served_at(
    kind, backbones, tmp_path, texts
):
    model = with_adapters(st_jv5.new_student(backbones[kind]))
    rope.train_at(model, 500.0)
    rope.train_at(model, 50.0, "clustering")
    rope.serve_at(model, 900.0)
    model.save_pretrained(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path))
    assert loaded[0].theta_train == {"base": 500.0, "clustering": 50.0}
    assert loaded[0].theta_serve == 900.0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 900.0
    expected = model.encode(texts, task="clustering")
    assert np.array_equal(loaded.encode(texts, task="clustering"), expected)


def test_a_trained_models_gradients_see_the_theta(backbones):
    student = st_jv5.new_student(backbones["eurobert"])
    with torch.inference_mode():
        rope.train_at(student, 100.0)  # buffers stay ordinary tensors
    vectors = student(student.preprocess(["a text of several words"]))["sentence_embedding"]
    vectors.sum().backward()


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_learned_positions_have_no_theta(kind, backbones):
    student = st_jv5.new_student(backbones[kind])
    assert (student[0].theta_train, student[0].theta_serve) == ({}, None)
    with pytest.raises(ValueError, match=rf"{kind} has no RoPE but 512 learned positions"):
        rope.train_at(student, 100.0)


@pytest.mark.parametrize("theta", [0.0, 1.0, float("nan"), float("inf")])
def test_a_theta_that_is_none_is_refused(theta, student):
    with pytest.raises(ValueError, match=f"theta must lie above 1, not {theta}"):
        rope.serve_at(student, theta)


@pytest.mark.parametrize(("old", "found"), [(250_000.0, {"base": 250_000.0}), (None, {})])
def test_folders_from_before_each_task_had_its_theta_still_load(old, found, saved):
    path = f"{saved}/st_jv5.json"
    with open(path) as file:
        settings = json.load(file)
    with open(path, "w") as file:
        json.dump({**settings, "theta_train": old}, file)
    assert SentenceTransformer(saved)[0].theta_train == found
    with open(path, "w") as file:
        json.dump({**settings, "theta_train": {"base": "much"}}, file)
    with pytest.raises(ValueError, match="theta_train must be numbers"):
        SentenceTransformer(saved)
