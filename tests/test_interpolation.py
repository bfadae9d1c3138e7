"""Between the weights that training began with and those that it ended with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5.projection import Projection


@pytest.fixture
def trained(student) -> SentenceTransformer:
    """The student, moved."""
    from copy import deepcopy

    moved = deepcopy(student)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in moved[0].base_parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    moved[0].projection = Projection(48, 9)
    return moved


def test_at_0_it_is_the_start_and_at_1_the_end(student, trained, texts):
    start, end = student.encode(texts), trained.encode(texts)
    assert not np.allclose(start, end, atol=1e-3)
    assert np.array_equal(st_jv5.student.interpolate(student, trained, 0).encode(texts), start)
    assert np.array_equal(st_jv5.student.interpolate(student, trained, 1).encode(texts), end)


def test_in_between_each_weight_is_the_weighted_mean(student, trained):
    between = st_jv5.student.interpolate(student, trained, 0.25)[0].base_state_dict()
    start, end = student[0].base_state_dict(), trained[0].base_state_dict()
    for name, tensor in between.items():
        if tensor.is_floating_point():
            mean = 0.75 * start[name].double() + 0.25 * end[name].double()
            assert torch.allclose(tensor.double(), mean, atol=1e-7), name


def test_neither_side_is_touched_and_the_ends_projection_stays_with_it(student, trained, texts):
    before = student.encode(texts), trained.encode(texts)
    between = st_jv5.student.interpolate(student, trained, 0.5)
    assert between[0].projection is None
    assert trained[0].projection is not None
    assert np.array_equal(student.encode(texts), before[0])
    assert np.array_equal(trained.encode(texts), before[1])


def test_it_is_an_ordinary_base_saved_loaded_and_given_adapters(student, trained, texts, tmp_path):
    between = st_jv5.student.interpolate(student, trained, 0.5)
    between.save_pretrained(str(tmp_path / "between"))
    loaded = SentenceTransformer(str(tmp_path / "between"))
    assert np.array_equal(loaded.encode(texts), between.encode(texts))
    folders = st_jv5.student.interpolate(tmp_path / "between", tmp_path / "between", 0.3)
    assert np.allclose(folders.encode(texts), loaded.encode(texts), atol=1e-5)
    st_jv5.add_task(loaded, "clustering")
    with pytest.raises(ValueError, match="end has the adapters clustering, which stand on its"):
        st_jv5.student.interpolate(student, loaded, 0.5)


def test_what_does_not_fit_is_named(student, trained, backbones):
    with pytest.raises(ValueError, match=r"weight must lie in 0..1 .*not 1.5"):
        st_jv5.student.interpolate(student, trained, 1.5)
    other = st_jv5.new_student(backbones["bert"], layers=[0])
    with pytest.raises(ValueError, match=r"start and end differ in \d+ tensors, such as "):
        st_jv5.student.interpolate(other, st_jv5.new_student(backbones["bert"]), 0.5)
    mean = st_jv5.new_student(backbones["bert"], pooling="mean")
    last = st_jv5.new_student(backbones["bert"], pooling="lasttoken")
    with pytest.raises(ValueError, match="start pools by mean, end by lasttoken"):
        st_jv5.student.interpolate(mean, last, 0.5)


def test_an_adapter_at_half_its_strength_moves_by_half_its_update(model, texts, tmp_path):
    adapter = model[0].take_adapter("retrieval")
    half, none = adapter.scaled(0.5), adapter.scaled(0)
    for name, tensor in adapter.tensors.items():
        share = 0.5 if ".lora_B." in name else 1.0
        assert torch.equal(half.tensors[name], share * tensor), name
    none.save(tmp_path / "none")
    st_jv5.adapters.load_adapter(model, tmp_path / "none")
    base = model.encode(texts, task="base", prompt="")
    assert np.allclose(model.encode(texts, task="retrieval", prompt=""), base, atol=1e-6)
    with pytest.raises(ValueError, match="strength must be 0 or more, not -1"):
        adapter.scaled(-1)
