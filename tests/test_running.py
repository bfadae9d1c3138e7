"""An engine gives the model's vectors, of all tasks, until its weights change."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from starlette.testclient import TestClient

import st_jv5
from st_jv5 import doctor
from st_jv5.choices import ENGINES
from st_jv5.engines import running
from st_jv5.engines.running import GraphEngine, engine_of, keep_choice
from st_jv5.serve.app import create_app
from tests.conftest import adapted, real_texts

GRAPHS = ("onnx", "onnx-int8", "openvino", "openvino-int8")
PACKAGES = {
    "onnx": ("onnx", "onnxruntime"),
    "onnx-int8": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "openvino-int8": ("onnx", "openvino", "nncf"),
}
ATOL = {"bfloat16": 1e-2, "onnx-int8": 1e-2}
"""Of vectors from batches of other shapes; the ranges of int8 are a batch's own."""
LEAST = {"onnx": 0.9999, "openvino": 0.9999}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The graphs of this file's one model, made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def small(backbones, cache, monkeypatch):
    monkeypatch.setenv(running.VARIABLE, str(cache))
    return adapted(backbones["bert"], layers=[0])


def least_cosine(one, other):
    return float((one * other).sum(axis=1).min())


def test_a_layer_in_training_deep_inside_is_brought_out_of_it(model, texts):
    expected = st_jv5.encode(model, texts, task="retrieval")
    model[0].model.layers[-1].mlp.train()
    assert np.array_equal(st_jv5.encode(model, texts, task="retrieval"), expected)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("engine", ["bfloat16", *GRAPHS])
def test_an_engine_gives_the_vectors_of_every_task(small, texts, engine):
    texts = texts[:12]
    tasks = [["retrieval", "query", "clustering", "base"][i % 4] for i in range(12)]
    expected = st_jv5.encode_mixed(small, texts, tasks)
    assert least_cosine(st_jv5.encode_mixed(small, texts, tasks, engine=engine), expected) > (
        LEAST.get(engine, 0.9)
    )
    # A cut is the model's own, asked for in a call or set on the model.
    expected = st_jv5.encode(small, texts, task="clustering", dim=8)
    found = st_jv5.encode(small, texts, task="clustering", dim=8, engine=engine)
    assert least_cosine(found, expected) > LEAST.get(engine, 0.9)
    with small.truncate_embeddings(8):
        found = st_jv5.encode(small, texts, task="clustering", engine=engine)
    assert found.shape == (12, 8)
    assert least_cosine(found, expected) > LEAST.get(engine, 0.9)
    assert small.dtype == torch.float32


def test_an_engine_is_started_once_and_anew_when_weights_change(small, texts, monkeypatch):
    first = engine_of(small, "onnx")
    assert engine_of(small, "onnx") is first
    layer = next(layer for _, layer in small[0].lora_layers())
    with torch.no_grad():
        layer.lora_B["retrieval"].weight.add_(1)
    seen = []
    monkeypatch.setattr(running, "_start", lambda model, name: seen.append(name) or first)
    engine_of(small, "onnx")
    assert seen == ["onnx"]
    twin = copy.deepcopy(small)
    st_jv5.adapters.remove_task(twin, "clustering")
    assert running.engine_folder(small) != running.engine_folder(twin)


def test_auto_is_what_was_measured_and_is_told_once(small, texts, caplog, tmp_path, monkeypatch):
    monkeypatch.setenv(running.VARIABLE, str(tmp_path))
    with caplog.at_level(logging.WARNING):
        st_jv5.encode(small, texts[:2], task="clustering", engine="auto")
    assert '"auto" takes torch: this model was not measured' in caplog.text
    again = copy.deepcopy(small)
    keep_choice(again, "bfloat16", "bfloat16: 1.50 times as fast as it is, at 0.10% of the score")
    caplog.clear()
    for _ in range(2):
        found = st_jv5.encode(again, texts[:2], task="clustering", engine="auto")
    assert len(caplog.records) == 1
    assert "bfloat16: 1.50 times as fast as it is, at 0.10% of the score" in caplog.text
    exact = st_jv5.encode(again, texts[:2], task="clustering")
    assert 0.9 < least_cosine(found, exact) < 0.999999


def test_every_engine_is_measured_and_the_fastest_that_loses_little_is_kept_for_auto(
    small, tmp_path, monkeypatch
):
    small.save_pretrained(str(tmp_path / "model"))
    speeds = iter([10.0, 15.0, 20.0, 60.0, 30.0, 25.0])
    scores = iter([80.0, 79.0, 80.0, 70.0, 79.61, 80.0])
    timed = doctor._timed

    def told(run):
        found, speed = timed(run)
        assert speed > 0
        return found, next(speeds)

    monkeypatch.setattr(doctor, "ROUNDS", 1)
    monkeypatch.setattr(doctor, "_timed", told)
    monkeypatch.setattr(doctor, "halves_score", lambda first, second: next(scores))
    lines = doctor.doctor(str(tmp_path / "model"), "clustering")
    rows = [line.split() for line in lines if "texts/s" in line]
    assert [row[0] for row in rows] == list(ENGINES)
    cosines = {row[0]: float(row[row.index("cosine") + 1]) for row in rows}
    assert cosines["torch"] == 1
    assert min(cosines["onnx"], cosines["openvino"]) > 0.9999
    assert 0.9 < cosines["bfloat16"] < 1
    assert "openvino, 3.00 times as fast as it is, at 0.49% of the score: st_jv5." in lines[-2]
    again = SentenceTransformer(str(tmp_path / "model"))
    assert isinstance(engine_of(again, "auto"), GraphEngine)
    assert running._chosen(again) == "openvino"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_gives_the_vectors_of_each_engine(small, texts, engine):
    for package in PACKAGES.get(engine, ()):
        pytest.importorskip(package, reason=f"the engine {engine} needs it")
    with TestClient(create_app(small, ["mine"], engine=engine)) as client:
        for task in ("query", "clustering", "base"):
            body = {"model": f"mine/{task}", "input": texts[:4], "dimensions": 8}
            rows = client.post("/v1/embeddings", json=body).json()["data"]
            expected = st_jv5.encode(small, texts[:4], task=task, dim=8, engine=engine)
            np.testing.assert_allclose(
                [row["embedding"] for row in rows], expected, atol=ATOL.get(engine, 1e-5)
            )


def test_a_server_on_auto_tells_once_what_it_took_and_what_that_costs(
    small, caplog, tmp_path, monkeypatch
):
    monkeypatch.setenv(running.VARIABLE, str(tmp_path))
    keep_choice(small, "bfloat16", "bfloat16: 1.50 times as fast as it is, at 0.10% of the score")
    with caplog.at_level(logging.WARNING, logger="st_jv5.engines"):
        app = create_app(small, ["mine"], engine="auto")
        told = [r.getMessage() for r in caplog.records if r.name.startswith("st_jv5.engines")]
        with TestClient(app) as client:
            for task in ("query", "clustering"):
                body = {"model": f"mine/{task}", "input": ["a cat"]}
                rows = client.post("/v1/embeddings", json=body).json()["data"]
                expected = st_jv5.encode(small, ["a cat"], task=task, engine="bfloat16")
                np.testing.assert_allclose(rows[0]["embedding"], expected[0], atol=1e-2)
    assert told == [
        'engine="auto" takes bfloat16: 1.50 times as fast as it is, at 0.10% of the score'
    ]
    assert [r for r in caplog.records if r.name.startswith("st_jv5.engines")][1:] == []


def test_a_server_says_what_its_engine_does_not_compute(backbones, cache, monkeypatch):
    monkeypatch.setenv(running.VARIABLE, str(cache))
    model = adapted(backbones["bert"], layers=[0])
    st_jv5.fit_heads(
        model, [f"{text} {i}" for i in range(3) for text in real_texts()], hidden=8, steps=5
    )
    body = {"model": "mine", "input": "a cat"}
    blend, head = {"retrieval": 0.5, "base": 0.5}, {"task": "clustering", "mode": "head"}
    for asked, param, told in (
        ({"task": blend}, "task", "this engine has adapters, and no blend"),
        (head, "mode", "heads are computed by torch, not by the engine 'onnx'"),
    ):
        with TestClient(create_app(model, ["mine"], engine="onnx")) as client:
            answer = client.post("/v1/embeddings", json=body | asked)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param)
        assert error["code"] == "not_by_this_engine"
        assert told in error["message"]


def test_what_an_engine_cannot_do_is_said_before_it_starts(small, student, monkeypatch):
    for model, settings, message in (
        (small, {"engine": "onxx"}, "unknown engine 'onxx'.*did you mean 'onnx'"),
        (student, {"engine": "onnx"}, "this model has no adapters"),
    ):
        with pytest.raises(ValueError, match=message):
            st_jv5.encode(model, ["a cat"], task="base", **settings)
    blend = {"retrieval": 0.5, "clustering": 0.5}
    with pytest.raises(ValueError, match=r"no blend such as .*st_jv5.blend_tasks"):
        st_jv5.encode(small, ["a cat"], task=blend, engine="onnx")
    with pytest.raises(ValueError, match="heads are computed by torch, not by the engine 'onnx'"):
        running.check_engine(small, "onnx", mode="head")
    monkeypatch.setattr(type(small), "device", torch.device("cuda"))
    with pytest.raises(ValueError, match="the engine 'onnx' runs on a CPU; this model is on cuda"):
        running.check_engine(small, "onnx")
