"""The doctor says what is there, and offers what it measured."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from st_jv5 import cli, doctor, new_student
from st_jv5.doctor import Probe
from tests.conftest import real_texts


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


def test_each_way_is_told_when_it_is_measured(model, monkeypatch, tmp_path):
    model.save_pretrained(str(tmp_path / "model"))
    told: list[str] = []
    seen: list[int] = []

    def two(*_: object) -> Iterator[Probe]:
        for name in ("torch", "onnx"):
            seen.append(len(told))
            yield Probe(name, 1.0, 1.0, 50.0, "how")

    monkeypatch.setattr(doctor, "probe", two)
    monkeypatch.setattr(doctor, "keep_choice", lambda *_: None)
    lines, probes = doctor.examine(str(tmp_path / "model"), tell=told.append)
    assert told == lines
    assert [one.name for one in probes] == ["torch", "onnx"]
    assert any(line.startswith("model: ") for line in told[: seen[0]])
    assert seen[1] == seen[0] + 1  # torch's line was told before onnx was measured


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
