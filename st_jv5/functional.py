"""The formulas: tensors in, scalar out; torch only. Equations are those of arXiv:2602.15547."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

Formula = TypeVar("Formula", bound=Callable[..., Tensor])


def at_full_precision(formula: Formula) -> Formula:
    """Compute a formula outside autocast, half-precision inputs in float32.

    Forwards may run in bfloat16; its three digits would not survive a division by a temperature
    of 0.02.
    """

    @wraps(formula)
    def computed(*args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(args[0].device.type, enabled=False):
            return formula(*(_widened(arg) for arg in args), **kwargs)

    return computed  # type: ignore[return-value]


def _widened(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


@at_full_precision
def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """``1 - cos`` of matching rows.

    Args:
        student: ``(n, D)``.
        teacher: ``(n, D)``, of any float dtype.

    Returns:
        ``(n,)`` in 0..2; a zero row counts as orthogonal to everything and gives 1.

    Example:
        >>> x = torch.eye(3)
        >>> cosine_distance(x, x).tolist()
        [0.0, 0.0, 0.0]
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have the same "
            f"shape; project one side to the other's width first"
        )
    return 1 - cosine_similarity(student, teacher.to(student.dtype), dim=-1)


def mean_over_present(values: Tensor, present: Tensor) -> Tensor:
    """Mean of ``values`` ``(n,)`` where ``present`` ``(n,)`` is true; 0 where it never is."""
    values = torch.where(present, values, torch.zeros_like(values))
    return values.sum() / present.sum().clamp(min=1)


@at_full_precision
def mean_squared_offdiagonal(rows: Tensor) -> Tensor:
    r"""One sum of Eq. 3: :math:`\frac{1}{B(B-1)} \sum_{i \neq j} (x_i \cdot x_j)^2`.

    Args:
        rows: ``(B, D)`` unit rows.

    Returns:
        A scalar in 0..1; 0 for a single row, which has nothing to differ from.

    Example:
        >>> mean_squared_offdiagonal(torch.eye(4)).item()
        0.0
    """
    count = rows.shape[0]
    if count < 2:
        return rows.sum() * 0
    squares = (rows @ rows.T).square()
    return (squares.sum() - squares.diagonal().sum()) / (count * (count - 1))


@at_full_precision
def info_nce(queries: Tensor, documents: Tensor, temperature: Tensor | float) -> Tensor:
    r"""Eq. 2: cross entropy of each query's own document among all documents.

    Args:
        queries: ``(B, D)`` unit rows.
        documents: ``(N, D)`` unit rows, ``N >= B``; document ``i`` is the positive of query ``i``,
            every other one a negative.
        temperature: Positive; cosines are divided by it.

    Returns:
        The mean over queries, ``>= 0``; ``log N`` where all cosines are equal.

    Example:
        >>> round(info_nce(torch.ones(2, 1), torch.ones(2, 1), 0.02).item(), 4)
        0.6931
    """
    if documents.shape[0] < queries.shape[0]:
        raise ValueError(f"{queries.shape[0]} queries but only {documents.shape[0]} documents")
    scores = queries @ documents.T / temperature
    return cross_entropy(scores, torch.arange(len(queries), device=scores.device))


@at_full_precision
def cosent(cosines: Tensor, scores: Tensor, temperature: float) -> Tensor:
    r"""CoSENT: :math:`\ln(1 + \sum_{s_i > s_j} \exp((\cos_j - \cos_i) / \tau'))`.

    Args:
        cosines: ``(B,)`` cosine of each pair.
        scores: ``(B,)`` similarity of each pair, on any scale; only the order counts.
        temperature: Positive.

    Returns:
        A scalar ``>= 0``; 0 where all scores are equal (one row too).

    Raises:
        ValueError: Shapes differ, or a score is NaN.

    Example:
        >>> cosent(torch.tensor([0.9, 0.1]), torch.tensor([1.0, 1.0]), 0.05).item()
        0.0
    """
    if cosines.shape != scores.shape or cosines.ndim != 1:
        raise ValueError(
            f"cosines {tuple(cosines.shape)} and scores {tuple(scores.shape)} must both be (B,)"
        )
    if scores.is_floating_point() and torch.isnan(scores).any():
        rows = torch.isnan(scores).nonzero().flatten().tolist()
        raise ValueError(f"scores are NaN in rows {rows} of the batch; every pair needs a score")
    gaps = (cosines[None, :] - cosines[:, None]) / temperature  # [i, j] = cos_j - cos_i
    ordered = scores[:, None] > scores[None, :]
    exponents = torch.where(ordered, gaps, torch.full_like(gaps, -torch.inf)).flatten()
    return torch.logsumexp(torch.cat([exponents.new_zeros(1), exponents]), dim=0)


@at_full_precision
def relational_distance(student: Tensor, teacher: Tensor, include_diagonal: bool = True) -> Tensor:
    r"""Eq. 8: how differently student and teacher space their texts, each in units of its mean.

    .. math:: \frac{1}{M^2} \sum_{ij}
        \left(\frac{1 - \cos(s_i, s_j)}{\mu_S} - \frac{1 - \cos(t_i, t_j)}{\mu_T}\right)^2

    Args:
        student: ``(M, D)``.
        teacher: ``(M, E)``; the widths may differ.
        include_diagonal: Whether the means count the M zero distances of each text to itself. The
            paper does not say; including them is our choice (the sum runs over all i, j too).

    Returns:
        A scalar ``>= 0``; 0 for one text, and wherever the distances are proportional.

    Example:
        >>> relational_distance(torch.eye(3), 2 * torch.eye(3)).item()
        0.0
    """
    count = student.shape[0]
    if teacher.shape[0] != count:
        raise ValueError(f"{count} student rows but {teacher.shape[0]} teacher rows")
    if count < 2:
        return student.sum() * 0

    def in_units_of_mean(rows: Tensor) -> Tensor:
        rows = normalize(rows, dim=-1)
        off_diagonal = 1 - torch.eye(count, device=rows.device, dtype=rows.dtype)
        distances = (1 - rows @ rows.T) * off_diagonal
        mean = distances.sum() / (count * (count if include_diagonal else count - 1))
        return distances / mean.clamp(min=torch.finfo(rows.dtype).eps)

    target = in_units_of_mean(teacher.detach().to(student.dtype))
    return (in_units_of_mean(student) - target).square().mean()
