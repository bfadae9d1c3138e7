"""Each formula against its double loop, its closed forms, its invariances and its edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from st_jv5 import functional as F
from tests import reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def unit(rows: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64)).to(dtype)


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


# ------------------------------------------------------------------------------------- reference


@dtypes
def test_cosine_distance_is_one_minus_cosine(dtype):
    x, y = unit(5, 7, 0, dtype) * 3, unit(5, 7, 1, dtype)
    expected = [1 - reference.cos(a, b) for a, b in zip(array(x), array(y), strict=True)]
    assert F.cosine_distance(x, y).tolist() == pytest.approx(expected, abs=TOLERANCE[dtype])


@dtypes
def test_mean_squared_offdiagonal_is_one_sum_of_eq_3(dtype):
    x = unit(6, 4, 2, dtype)
    expected = reference.gor([array(x)])
    assert F.mean_squared_offdiagonal(x).item() == pytest.approx(expected, abs=TOLERANCE[dtype])


@dtypes
@pytest.mark.parametrize("temperature", [0.02, 1.0])
def test_info_nce_is_eq_2_with_hard_negatives(dtype, temperature):
    q, d = unit(4, 8, 3, dtype), unit(11, 8, 4, dtype)
    expected = reference.info_nce(array(q), array(d), temperature)
    relative = TOLERANCE[dtype]
    assert F.info_nce(q, d, temperature).item() == pytest.approx(expected, rel=relative)


@dtypes
def test_cosent_is_the_papers(dtype):
    cosines = torch.tensor([0.3, -0.2, 0.9, 0.1, 0.4], dtype=torch.float64).to(dtype)
    scores = torch.tensor([0.5, 0.5, 0.1, 1.0, 0.0])
    expected = reference.cosent(array(cosines), scores.tolist(), 0.05)
    assert F.cosent(cosines, scores, 0.05).item() == pytest.approx(expected, rel=TOLERANCE[dtype])


@dtypes
@pytest.mark.parametrize("include_diagonal", [True, False])
def test_relational_distance_is_eq_8(dtype, include_diagonal):
    s, t = unit(7, 5, 5, dtype), unit(7, 9, 6, dtype)
    expected = reference.relational(array(s), array(t), include_diagonal)
    found = F.relational_distance(s, t, include_diagonal).item()
    assert found == pytest.approx(expected, abs=TOLERANCE[dtype])


# ----------------------------------------------------------------------------------- closed form


def test_orthonormal_rows_have_no_offdiagonal():
    assert F.mean_squared_offdiagonal(torch.eye(5, dtype=torch.float64)).item() == 0


def test_equal_rows_have_offdiagonal_one():
    assert F.mean_squared_offdiagonal(unit(1, 6, 0).expand(4, 6)).item() == pytest.approx(1)


def test_equal_cosines_give_info_nce_log_n():
    rows = unit(1, 3, 0)
    assert F.info_nce(rows.expand(4, 3), rows.expand(9, 3), 0.02).item() == pytest.approx(
        math.log(9)
    )


def test_student_equal_to_teacher_gives_zero():
    x = unit(6, 4, 0)
    assert F.cosine_distance(x, 5 * x).abs().max().item() < 1e-12
    assert F.relational_distance(x, 5 * x).item() < 1e-24


def test_two_scored_pairs_give_cosent_softplus():
    found = F.cosent(torch.tensor([0.2, 0.7]), torch.tensor([1.0, 0.0]), 0.05)
    assert found.item() == pytest.approx(math.log1p(math.exp(0.5 / 0.05)), rel=1e-6)


# -------------------------------------------------------------------------------------- chunks

FORMULAS = {
    "gor": lambda x, y: F.mean_squared_offdiagonal(x),
    "info_nce": lambda x, y: F.info_nce(x, y, 0.3),
    "masked": lambda x, y: F.info_nce(x, y, 0.3, excluded=torch.arange(49).reshape(7, 7) % 3 == 0),
    "cosent": lambda x, y: F.cosent((x * y).sum(1), torch.tensor([2, 1, 1, 0, 3, 2, 5]), 0.3),
    "relational": lambda x, y: F.relational_distance(x, y),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("elements", [1, 14, 20])
def test_a_score_matrix_in_chunks_gives_the_same_value_and_gradient(monkeypatch, name, elements):
    x, y = unit(7, 5, 0).requires_grad_(), unit(7, 5, 1)
    whole = FORMULAS[name](x, y)
    (expected,) = torch.autograd.grad(whole, x)
    monkeypatch.setattr(F, "CHUNK_ELEMENTS", elements)
    found = FORMULAS[name](x, y)
    (gradient,) = torch.autograd.grad(found, x)
    assert found.item() == pytest.approx(whole.item(), abs=1e-12)
    assert torch.allclose(gradient, expected, atol=1e-12)
    assert torch.autograd.gradcheck(lambda rows: FORMULAS[name](rows, y), (x,))


def test_negatives_that_are_left_out_do_not_count():
    q, d = unit(3, 5, 0), unit(8, 5, 1)
    kept = torch.tensor([0, 1, 2, 5])
    excluded = torch.ones(3, 8, dtype=torch.bool)
    excluded[:, kept] = False
    excluded[:, :3] |= torch.eye(3, dtype=torch.bool)  # a positive counts all the same
    assert torch.allclose(F.info_nce(q, d, 0.1, excluded=excluded), F.info_nce(q, d[kept], 0.1))


@pytest.mark.parametrize(("rows", "dim"), [(9, 4), (4, 9)])
def test_either_gram_matrix_gives_the_offdiagonal(rows, dim):
    x = unit(rows, dim, 3)
    expected = reference.gor([array(x)])
    assert F.mean_squared_offdiagonal(x).item() == pytest.approx(expected, abs=1e-12)


# ---------------------------------------------------------------------------------- invariances


def test_gor_ignores_rotation_and_row_order():
    x = unit(6, 4, 7)
    rotation = torch.linalg.qr(unit(4, 4, 8))[0]
    moved = (x @ rotation)[torch.randperm(6)]
    assert torch.allclose(F.mean_squared_offdiagonal(x), F.mean_squared_offdiagonal(moved))


def test_info_nce_ignores_the_order_of_negatives():
    q, d = unit(3, 5, 0), unit(8, 5, 1)
    shuffled = torch.cat([d[:3], d[3:].flip(0)])
    assert torch.allclose(F.info_nce(q, d, 0.1), F.info_nce(q, shuffled, 0.1))


def test_cosent_reads_only_the_order_of_scores():
    cosines = torch.tensor([0.1, 0.5, 0.3])
    a = F.cosent(cosines, torch.tensor([1.0, 2.0, 3.0]), 0.05)
    b = F.cosent(cosines, torch.tensor([-9, 0, 70]), 0.05)
    assert torch.equal(a, b)


def test_relational_distance_ignores_scale_and_rotation_of_either_side():
    s, t = unit(6, 4, 1), unit(6, 4, 2)
    rotation = torch.linalg.qr(unit(4, 4, 8))[0]
    assert torch.allclose(F.relational_distance(s, t), F.relational_distance(3 * s @ rotation, t))


# ------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    "formula",
    [
        lambda x, y: F.cosine_distance(x, y).sum(),
        lambda x, y: F.mean_squared_offdiagonal(x),
        lambda x, y: F.info_nce(x, y, 0.3),
        lambda x, y: F.cosent((x * y).sum(1), torch.tensor([2.0, 1.0, 1.0, 0.0]), 0.3),
        lambda x, y: F.relational_distance(x, y),
    ],
    ids=["cosine_distance", "gor", "info_nce", "cosent", "relational"],
)
def test_gradients_are_those_of_finite_differences(formula):
    x, y = unit(4, 5, 0).requires_grad_(), unit(4, 5, 1)
    assert torch.autograd.gradcheck(lambda rows: formula(rows, y), (x,))


def test_relational_teacher_gets_no_gradient():
    s, t = unit(4, 3, 0).requires_grad_(), unit(4, 3, 1).requires_grad_()
    F.relational_distance(s, t).backward()
    assert s.grad is not None
    assert t.grad is None


# ----------------------------------------------------------------------------------------- edges


def test_one_row_gives_the_defined_value():
    x = unit(1, 4, 0)
    assert F.mean_squared_offdiagonal(x).item() == 0
    assert F.info_nce(x, x, 0.02).item() == 0
    assert F.cosent(torch.tensor([0.3]), torch.tensor([1.0]), 0.05).item() == 0
    assert F.relational_distance(x, x).item() == 0


def test_zero_vectors_and_equal_texts_stay_finite():
    zeros = torch.zeros(3, 4, requires_grad=True)
    same = torch.ones(3, 4)
    assert F.cosine_distance(zeros, same).tolist() == [1, 1, 1]
    loss = F.relational_distance(same.requires_grad_(), unit(3, 4, 0, torch.float32))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(same.grad).all()


def test_a_tiny_temperature_stays_finite():
    q = unit(4, 5, 0, torch.float32)
    assert torch.isfinite(F.info_nce(q, unit(4, 5, 1, torch.float32), 1e-4))
    cosines, scores = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.0])
    assert torch.isfinite(F.cosent(cosines, scores, 1e-4))


def test_nan_scores_are_refused_with_their_rows():
    with pytest.raises(ValueError, match=r"NaN in rows \[1\]"):
        F.cosent(torch.zeros(3), torch.tensor([0.1, math.nan, 0.2]), 0.05)


def test_widths_that_do_not_fit_are_refused_with_their_shapes():
    with pytest.raises(ValueError, match=r"student \(2, 3\) and teacher \(2, 4\)"):
        F.cosine_distance(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="4 queries but only 3 documents"):
        F.info_nce(torch.zeros(4, 2), torch.zeros(3, 2), 0.02)


def test_formulas_leave_autocast():
    q, d = unit(4, 8, 0, torch.float32), unit(9, 8, 1, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = F.info_nce(q, d, 0.02)
    assert torch.equal(inside, F.info_nce(q, d, 0.02))
