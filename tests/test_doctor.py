"""The doctor says what is there, and offers what it measured."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers import SentenceTransformer

from st_jv5 import cli, doctor, new_student
from st_jv5.doctor import Probe
from tests.conftest import real_texts


def test_every_way_is_measured_and_the_fastest_close_one_is_offered(saved, monkeypatch):
    speeds = iter([10.0, 40.0, 20.0, 30.0])
    timed = doctor._timed

    def told(run):
        found, speed = timed(run)
        assert speed > 0
        return found, next(speeds)

    monkeypatch.setattr(doctor, "ROUNDS", 1)
    monkeypatch.setattr(doctor, "_timed", told)
    monkeypatch.setattr(doctor, "LEAST_COSINE", 0.9999)  # bfloat16 is not as close
    lines = doctor.doctor(saved, "clustering")
    names = [line.split()[0:2] for line in lines if "texts/s" in line]
    assert [name[0] for name in names] == ["torch", "torch", "onnx", "openvino"]
    cosines = [float(line.split("cosine ")[1].split()[0]) for line in lines if "texts/s" in line]
    assert cosines[0] == 1
    assert 0.9 < cosines[1] < 0.9999
    assert min(cosines[2:]) > 0.9999
    assert lines[-1].startswith("fastest: openvino, 3.00 times as fast as it is: st-jv5 export")
    assert any("adapters retrieval, text-matching" in line for line in lines)


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
    assert str(Probe("onnx", 12.34, 0.99999, "how")).split()[:3] == ["onnx", "12.3", "texts/s"]


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
def test_a_compiled_task_gives_the_vectors_of_the_model(model):
    texts = sorted(real_texts(), key=len)
    (probe,) = [
        p for p in doctor.probe(model, "retrieval", texts, compiled=True) if "comp" in p.name
    ]
    assert probe.least_cosine > 0.99999


def test_a_causal_model_is_told_to_need_no_mask(backbones):
    lines = {}
    for kind in ("qwen3", "eurobert"):
        model = new_student(backbones[kind])
        lines[kind] = next(line for line in doctor._model(model) if line.startswith("model: "))
    assert "attention sdpa without a mask (causal, padded on the right)" in lines["qwen3"]
    assert "attention sdpa, texts" in lines["eurobert"]
