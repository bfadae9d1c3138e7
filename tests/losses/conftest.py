"""A student in float64, and unit rows for its losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

DIM, TEACHER_DIM, BATCH = 48, 20, 5


def unit(rows: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=-1)


@pytest.fixture
def columns() -> list[torch.Tensor]:
    """Query, positive and two negatives: unit rows in float64."""
    return [unit(BATCH, DIM, seed).requires_grad_() for seed in range(4)]


@pytest.fixture
def teachers() -> torch.Tensor:
    """(B, 2, E)"""
    return torch.stack([unit(BATCH, TEACHER_DIM, 10), unit(BATCH, TEACHER_DIM, 11)], dim=1)


@pytest.fixture
def student(student: SentenceTransformer) -> SentenceTransformer:
    return student.double()


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()
