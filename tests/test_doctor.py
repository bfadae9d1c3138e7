"""The doctor says what is there, and offers what it measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from st_jv5 import cli, doctor, new_student
from st_jv5.choices import ENGINES
from st_jv5.doctor import Probe
from st_jv5.engines import running
from st_jv5.engines.running import GraphEngine, engine_of
from tests.conftest import adapted, real_texts


def test_every_engine_is_measured_and_the_fastest_that_loses_little_is_kept_for_auto(
    backbones, tmp_path, monkeypatch
):
    model = adapted(backbones["bert"], layers=[0])
    model.save_pretrained(str(tmp_path / "model"))
    monkeypatch.setenv("ST_JV5_CACHE", str(tmp_path / "cache"))
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
    assert 0.9 < cosines["bfloat16"] < 0.9999
    assert "openvino, 3.00 times as fast as it is, at 0.49% of the score: st_jv5." in lines[-2]
    again = SentenceTransformer(str(tmp_path / "model"))
    assert isinstance(engine_of(again, "auto"), GraphEngine)
    assert running._chosen(again) == "openvino"


def test_the_score_is_the_reciprocal_rank_of_a_texts_other_half():
    first, second = doctor.halves(["one two " * 20, "short", "ab" * 200])
    assert second[1] == "ab" * 75  # no space: cut in the middle of 300 characters
    assert (len(first), first[0].split()[:2], second[0].split()[-1]) == (2, ["one", "two"], "two")
    near = np.array([[1.0, 0.0], [0.6, 0.8]])
    assert doctor.halves_score(near, near) == 100
    assert doctor.halves_score(near, near[::-1]) == 50
    assert doctor.halves_score(near, np.ones((2, 2))) == 50  # equal ones count before it


def test_too_few_threads_are_named(monkeypatch, capsys):
    cores = doctor.usable_cores()
    monkeypatch.setattr(doctor, "usable_cores", lambda: cores + 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    cli.main(["doctor"])
    found = capsys.readouterr().out
    assert f"threads (OMP_NUM_THREADS=7) on {cores + 2} cores; set OMP_NUM_THREADS" in found
    assert "name a model to measure" in found
    monkeypatch.undo()
    torch.set_num_threads(torch.get_num_threads())
    assert str(Probe("onnx", 12.34, 0.99999, 80.0, "how")).split()[:3] == [
        "onnx",
        "12.3",
        "texts/s",
    ]


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_is_for_gpus_that_multiply_it(model, monkeypatch, capability, fast):
    from st_jv5.recipe.context import native_bfloat16

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # it counts emulation
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert native_bfloat16() is fast
    monkeypatch.setattr(SentenceTransformer, "device", torch.device("cuda"))
    monkeypatch.setattr(doctor, "free_memory", lambda device: 2**30)
    assert any('"dtype": "bfloat16"' in line for line in doctor._model(model)) is fast


@pytest.mark.full
def test_a_compiled_task_gives_the_vectors_of_the_model(model, monkeypatch):
    monkeypatch.setattr(doctor, "ENGINES", ("torch",))
    texts = sorted(real_texts(), key=len)
    _, probe = doctor.probe(model, "retrieval", texts, compiled=True)
    assert probe.least_cosine > 0.99999


def test_a_causal_model_is_told_to_need_no_mask(backbones):
    lines = {}
    for kind in ("qwen3", "eurobert"):
        model = new_student(backbones[kind])
        lines[kind] = next(line for line in doctor._model(model) if line.startswith("model: "))
    assert "attention sdpa without a mask (causal, padded on the right)" in lines["qwen3"]
    assert "attention sdpa, texts" in lines["eurobert"]
