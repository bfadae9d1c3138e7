"""Adapters merged on the fly: only speed shows."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

import st_jv5
from st_jv5.modules import merging
from st_jv5.task_table import TASKS


def test_large_batches_are_merged_and_small_ones_are_not(model, texts):
    router = model[0]
    model.encode(texts[:1], task="retrieval")
    assert len(router.merging) == 0
    first = model.encode(texts, task="retrieval")
    assert "retrieval" in router.merging
    assert np.array_equal(model.encode(texts, task="retrieval"), first)
    router.merging.least_tokens = None
    np.testing.assert_allclose(model.encode(texts, task="retrieval"), first, atol=1e-5)
    assert not np.array_equal(model.encode(texts, task="retrieval"), first)


def test_where_weights_are_unchanging_a_copy_serves_small_batches_unlooked(
    model, texts, monkeypatch
):
    unmerged = model.encode(texts[:1], task="retrieval")
    model.encode(texts, task="retrieval")
    with monkeypatch.context() as patch:
        patch.setattr(merging._Source, "is_same", None)
        with model[0].merging.unchanging():
            merged = model.encode(texts[:1], task="retrieval")
            again = model.encode(texts[:2], task="retrieval")[:1]
    np.testing.assert_allclose(merged, unmerged, atol=1e-5)
    np.testing.assert_allclose(again, unmerged, atol=1e-5)
    assert not np.array_equal(merged, unmerged)
    assert np.array_equal(model.encode(texts[:1], task="retrieval"), unmerged)


def test_a_folded_weight_is_the_formula(model):
    _, layer = next(iter(model[0].lora_layers()))
    a, b = (half["retrieval"].weight.double() for half in (layer.lora_A, layer.lora_B))
    expected = layer.get_base_layer().weight.double() + layer.scaling["retrieval"] * b @ a
    found = merging.fold(layer, "retrieval")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "change",
    ["adapter", "base", "scaling", "half", "fill", "data", "base data", "a row", "a column"],
)
def test_a_changed_weight_is_never_served_from_an_old_copy(model, texts, change):
    router = model[0]
    before = model.encode(texts, task="retrieval")
    _, layer = next(iter(router.lora_layers()))
    with torch.no_grad():
        if change == "adapter":
            layer.lora_B["retrieval"].weight.add_(0.3)
        elif change == "base":
            layer.get_base_layer().weight.mul_(0.5)
        elif change == "scaling":
            layer.scaling["retrieval"] *= 3
        elif change == "data":
            layer.lora_B["retrieval"].weight.data.mul_(1.5)
        elif change == "base data":
            layer.get_base_layer().weight.data.mul_(0.5)
        elif change == "a row":
            layer.get_base_layer().weight.data[3].fill_(5)
        elif change == "a column":
            layer.get_base_layer().weight.data[:, 3].fill_(5)
        elif change == "half":
            model.half().float()
        else:
            router.fill_adapter("retrieval", router.adapter_tensors("clustering"), "test")
    after = model.encode(texts, task="retrieval")
    router.merging.least_tokens = None
    np.testing.assert_allclose(after, model.encode(texts, task="retrieval"), atol=1e-5)
    assert not np.allclose(after, before, atol=1e-5)


@pytest.mark.parametrize("place", ["base_layer", "lora_A", "lora_B", "lora_dropout"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_is_heard_whether_it_comes_before_or_after_a_copy(model, texts, place, kind):
    router = model[0]
    for before in (False, True):
        if not before:
            model.encode(texts, task="retrieval")
        _, layer = next(iter(router.lora_layers()))
        inner = getattr(layer, place)
        inner = inner if place == "base_layer" else inner["retrieval"]
        heard = []
        hook = getattr(inner, kind)(lambda *_, heard=heard: heard.append(1))
        found = model.encode(texts, task="retrieval")
        assert heard
        hook.remove()
        np.testing.assert_allclose(found, model.encode(texts, task="retrieval"), atol=1e-5)
        router.merging.clear()


def test_a_gpus_values_are_looked_at_once_in_a_while(model, texts, monkeypatch):
    model.encode(texts, task="retrieval")
    _, source = model[0].merging._kept["retrieval"]
    assert not source.waits
    looks, stock = [], merging._Source._values
    monkeypatch.setattr(merging._Source, "_values", lambda self: looks.append(1) or stock(self))
    source.waits = True  # as on a GPU
    monkeypatch.setattr(merging, "LOOK_SECONDS", 3600.0)
    for _ in range(4):
        model.encode(texts, task="retrieval")
    assert not looks
    monkeypatch.setattr(merging, "LOOK_SECONDS", 0.0)
    model.encode(texts, task="retrieval")
    assert looks


def test_what_torch_holds_for_later_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    assert merging.free_memory(torch.device("cuda")) == 500


def test_training_is_not_merged_and_gives_the_memory_back(model, texts):
    model.encode(texts, task="retrieval")
    st_jv5.train_task(model, "retrieval")
    model.train()
    assert len(model[0].merging) == 0
    model.eval()
    features = model.preprocess(texts, task="retrieval")
    model(features, task="retrieval")["sentence_embedding"].sum().backward()
    assert len(model[0].merging) == 0
    assert any(p.grad is not None for p in model[0].adapter_tensors("retrieval").values())


def test_the_longest_unused_makes_room(model, texts):
    kept = model[0].merging
    kept.most = 2
    for task in ("retrieval", "clustering", "retrieval", "classification"):
        model.encode(texts, task=task)
    assert len(kept) == 2
    assert "clustering" not in kept
    kept.most = 0
    kept.clear()
    model.encode(texts, task="retrieval")
    assert len(kept) == 0
    with st_jv5.adapters.merged(model, "retrieval"):  # asked for: made whatever the room
        model.encode(texts, task="retrieval")
        assert "retrieval" in kept
    assert len(kept) == 0


def test_without_free_memory_nothing_is_merged(model, texts, monkeypatch):
    monkeypatch.setattr(merging, "free_memory", lambda device: 1000)
    expected = model.encode(texts, task="retrieval")
    assert len(model[0].merging) == 0
    monkeypatch.undo()
    np.testing.assert_allclose(model.encode(texts, task="retrieval"), expected, atol=1e-5)
    assert len(model[0].merging) == 1


def test_copies_of_a_model_have_none(model, texts):
    expected = model.encode(texts, task="retrieval")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(other[0].merging) == 0
        assert np.array_equal(other.encode(texts, task="retrieval"), expected)


def test_an_adapter_on_few_layers_is_merged_there_alone(student, texts):
    st_jv5.add_task(student, "slim", target_modules=["q_proj", "v_proj"])
    st_jv5.add_task(student, "retrieval")
    for task in ("slim", "retrieval"):
        for name, tensor in student[0].adapter_tensors(task).items():
            if ".lora_B." in name:
                torch.nn.init.normal_(tensor, std=0.1)
    found = {task: student.encode(texts, task=task) for task in ("slim", "retrieval")}
    assert len(student[0].merging) == 2
    student[0].merging.least_tokens = None
    for task, vectors in found.items():
        np.testing.assert_allclose(vectors, student.encode(texts, task=task), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_and_rows_stay_unit(model, texts, dtype):
    model.to(dtype)
    exact = {task: model.encode(texts, task=task) for task in TASKS}
    for task, vectors in exact.items():
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        _, layer = next(iter(model[0].lora_layers()))
        assert merging.fold(layer, task).dtype == dtype
