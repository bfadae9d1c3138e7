"""The projection: its start, its files, and fitting one to a frozen base."""

from __future__ import annotations

import pytest
import torch

import st_jv5
from st_jv5.projection import Projection


def test_it_starts_as_the_identity_and_keeps_cosines():
    x, y = torch.randn(6, 4), torch.randn(6, 7)
    up, _ = Projection(4, 7)(x, y)
    assert torch.allclose(up @ up.T, x @ x.T)
    assert torch.equal(up[:, 4:], torch.zeros(6, 3))


def test_saved_and_loaded_it_is_the_same(tmp_path):
    projection = Projection(
        4, 7, placement="teacher_down", info={"teacher": "big", "revision": "abc"}
    )
    torch.nn.init.normal_(projection.linear.weight)
    projection.save(tmp_path)
    loaded = Projection.load(tmp_path)
    assert (loaded.placement, loaded.info) == ("teacher_down", projection.info)
    assert torch.equal(loaded.linear.weight, projection.linear.weight)


def test_files_that_do_not_fit_are_named(tmp_path):
    Projection(4, 7).save(tmp_path)
    other = tmp_path / "other"
    Projection(4, 8).save(other)
    (tmp_path / "projection.safetensors").write_bytes(
        (other / "projection.safetensors").read_bytes()
    )
    with pytest.raises(ValueError, match=r"asks for bias \(7,\), but projection.safetensors"):
        Projection.load(tmp_path)
    (tmp_path / "projection.json").write_text('{"student_dim": 4}')
    with pytest.raises(ValueError, match="lacks teacher_dim, placement"):
        Projection.load(tmp_path)


def test_widths_and_placements_are_checked():
    with pytest.raises(ValueError, match="placement must be one of"):
        Projection(4, 7, placement="sideways")
    with pytest.raises(ValueError, match="teacher_dim must be a positive integer, not 0"):
        Projection(4, 0)
    with pytest.raises(ValueError, match=r"4 student and 7 teacher dims, but got student \(2, 5\)"):
        Projection(4, 7)(torch.zeros(2, 5), torch.zeros(2, 7))


def test_fitting_finds_the_map_that_made_the_teacher(student, texts, tmp_path):
    torch.manual_seed(0)
    vectors = torch.from_numpy(student.encode(texts))
    weight, bias = torch.randn(9, 48), torch.randn(9)
    store = st_jv5.teacher.TeacherStore.open(tmp_path, create=True)
    store = store.space("big", revision="r1", dim=9, dtype="float32")
    store.add(texts, vectors @ weight.T + bias)
    projection = st_jv5.projection.fit_projection(student, store, texts)
    up, teacher = projection(vectors, store.gather(store.rows(texts)))
    assert torch.allclose(up, teacher, atol=1e-3)
    assert projection.info["teacher"] == "big"
    assert student[0].projection is projection
    with pytest.raises(ValueError, match="48 texts are too few to fit 48 dims"):
        st_jv5.projection.fit_projection(student, store, texts[:48])


def test_fitted_with_a_map_of_its_own_a_cut_student_comes_nearer_its_teacher():
    torch.manual_seed(0)
    student = torch.nn.functional.normalize(torch.randn(200, 48), dim=-1)
    teacher = student @ torch.randn(48, 9)
    projection = Projection.fitted(student, teacher, own_map_dims=[16])
    plain = Projection.fitted(student, teacher)
    whole, _ = projection(student, teacher)
    assert torch.allclose(whole, teacher, atol=1e-3)
    cut = torch.nn.functional.normalize(student[:, :16], dim=-1)
    own, first = projection(cut, teacher)[0], plain(cut, teacher)[0]
    assert (own - teacher).norm() < 0.9 * (first - teacher).norm()


def test_a_fit_uses_every_direction_however_many_rows_and_whatever_their_order():
    """Vectors share a large direction; what tells them apart is a thousandth of it."""
    torch.manual_seed(0)
    apart = torch.randn(20_000, 48) * torch.linspace(2e-2, 5e-4, 48)
    student = torch.nn.functional.normalize(torch.randn(48) / 48**0.5 + apart, dim=-1)
    teacher = student @ torch.randn(48, 9)
    order = torch.randperm(len(student))
    fitted = Projection.fitted(student, teacher)
    again = Projection.fitted(student[order], teacher[order])
    assert torch.allclose(fitted(student, teacher)[0], teacher, atol=1e-4)
    assert torch.allclose(fitted.linear.weight, again.linear.weight, atol=1e-4)
