"""Score distillation is the stock divergence over in-batch candidates."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
from torch.nn.functional import normalize

from eval.studies.score_distill import ScoreDistillLoss, score_divergence
from st_jv5.losses import CompositeLoss


def rows(count: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return normalize(drawn, dim=-1)


def test_it_is_the_stock_loss_with_every_document_as_a_candidate(student):
    queries, documents, teacher = rows(6, 8, 0), rows(6, 8, 1), (rows(6, 5, 2), rows(6, 5, 3))
    ours = score_divergence(queries, documents, *teacher, 0.05)
    # Candidate column j holds, for row i, document i + j.
    turned = [documents.roll(-shift, 0) for shift in range(6)]
    scores = torch.stack(
        [(teacher[0] * teacher[1].roll(-shift, 0)).sum(dim=1) for shift in range(6)], dim=1
    )
    stock = DistillKLDivLoss(student, temperature=0.05)
    theirs = stock.compute_loss_from_embeddings([queries, *turned], scores) / 0.05**2
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)


def test_equal_cosines_give_zero_whatever_the_space():
    queries, documents = rows(6, 8, 0), rows(6, 8, 1)
    turn = torch.linalg.qr(rows(8, 8, 2)).Q
    assert score_divergence(queries, documents, queries @ turn, documents @ turn, 0.05) < 1e-12
    assert score_divergence(queries, documents, rows(6, 8, 4), rows(6, 8, 5), 0.05) > 0.1


def test_gradients_are_right():
    inputs = [rows(4, 5, seed).requires_grad_() for seed in range(2)]
    teacher = rows(4, 3, 2), rows(4, 3, 3)
    assert torch.autograd.gradcheck(lambda q, d: score_divergence(q, d, *teacher, 0.5), inputs)


def test_it_reads_the_store_and_trains_at_every_dim(student, store, pairs):
    loss = CompositeLoss(
        student, {"scores": (ScoreDistillLoss(student, store=store), 1.0)}, dims=(48, 8)
    )
    columns = [student.preprocess(pairs[name][:4]) for name in ("query", "positive")]
    labels = torch.tensor(pairs["label"][:4])
    value = loss(columns, labels)["scores"]
    value.backward()
    assert value > 0
    assert sum(p.grad is not None for p in student.parameters()) > 10
    labels[1, 1] = -1
    with pytest.raises(ValueError, match="needs the teacher's vector of every text"):
        loss(columns, labels)
    with pytest.raises(ValueError, match="temperature must be positive, not 0"):
        ScoreDistillLoss(student, temperature=0.0)
