"""The formulas: tensors in, scalar out; torch only. Equations are those of arXiv:2602.15547."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, normalize
from torch.utils.checkpoint import checkpoint

Formula = TypeVar("Formula", bound=Callable[..., Tensor])
RowMask = Callable[[int, int], Tensor]
"""``(begin, end)`` -> bool ``(end - begin, N)``: a mask of these rows, never whole in memory."""

CHUNK_ELEMENTS = 1 << 20
"""Most elements of a score matrix that a CPU holds at once; more rows are computed in turn."""
CHUNK_ELEMENTS_ELSEWHERE = 1 << 25
"""Elements of a block on other devices: 128 MiB in float32; a term keeps a few of them."""


def in_row_chunks(
    part: Callable[[int, int], Tensor], rows: int, elements_per_row: int, *, device: torch.device
) -> list[Tensor]:
    """``part(begin, end)`` over all rows, in chunks of as many elements as the device may hold.

    More than one chunk: each is dropped after use and computed again in the backward pass, so a
    score matrix is never whole in memory.
    """
    most = CHUNK_ELEMENTS if device.type == "cpu" else CHUNK_ELEMENTS_ELSEWHERE
    step = max(1, most // max(1, elements_per_row))
    if rows <= step:
        return [part(0, rows)]
    return [
        checkpoint(
            part, begin, min(begin + step, rows), use_reentrant=False, preserve_rng_state=False
        )
        for begin in range(0, rows, step)
    ]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to keep a weight that learns in: float32 in the place of half precision."""
    return torch.promote_types(dtype, torch.float32)


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


def sum_of(parts: list[Tensor]) -> Tensor:
    """The sum of scalars."""
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


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
    count, dim = rows.shape
    if count < 2:
        return rows.sum() * 0
    # The sum of all squares is that of X X^T and of X^T X alike: take the smaller one.
    gram = rows @ rows.T if count <= dim else rows.T @ rows
    own = rows.square().sum(dim=1).square().sum()
    return (gram.square().sum() - own) / (count * (count - 1))


@at_full_precision
def info_nce(
    queries: Tensor,
    documents: Tensor,
    temperature: Tensor | float,
    *,
    excluded: Tensor | RowMask | None = None,
) -> Tensor:
    r"""Eq. 2: cross entropy of each query's own document among all documents.

    Args:
        queries: ``(B, D)`` unit rows.
        documents: ``(N, D)`` unit rows, ``N >= B``; document ``i`` is the positive of query ``i``,
            every other one a negative.
        temperature: Positive; cosines are divided by it.
        excluded: bool ``(B, N)``, or what gives rows of it: negatives to leave out. The positive
            itself always counts.

    Returns:
        The mean over queries, ``>= 0``; ``log N`` where all cosines are equal.

    Example:
        >>> round(info_nce(torch.ones(2, 1), torch.ones(2, 1), 0.02).item(), 4)
        0.6931
    """
    if documents.shape[0] < queries.shape[0]:
        raise ValueError(f"{queries.shape[0]} queries but only {documents.shape[0]} documents")

    def part(begin: int, end: int) -> Tensor:
        scores = queries[begin:end] @ documents.T / temperature
        own = torch.arange(begin, end, device=scores.device)
        if excluded is not None:
            rows = excluded[begin:end] if isinstance(excluded, Tensor) else excluded(begin, end)
            left_out = rows.scatter(1, own[:, None], False)
            scores = scores.masked_fill(left_out, -torch.inf)
        return cross_entropy(scores, own, reduction="sum")

    return sum_of(in_row_chunks(part, len(queries), len(documents), device=queries.device)) / len(
        queries
    )


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

    def part(begin: int, end: int) -> Tensor:
        gaps = (cosines[None, :] - cosines[begin:end, None]) / temperature  # [i, j] = cos_j - cos_i
        ordered = scores[begin:end, None] > scores[None, :]
        return torch.logsumexp(gaps.masked_fill(~ordered, -torch.inf).flatten(), dim=0)

    parts = torch.stack(in_row_chunks(part, len(cosines), len(cosines), device=cosines.device))
    return torch.logsumexp(torch.cat([parts.new_zeros(1), parts]), dim=0)


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

    student = normalize(student, dim=-1)
    teacher = normalize(teacher.detach().to(student.dtype), dim=-1)
    pairs = count * (count if include_diagonal else count - 1)
    tiny = torch.finfo(student.dtype).eps

    def distances(rows: Tensor, begin: int, end: int) -> Tensor:
        itself = torch.arange(begin, end, device=rows.device)
        return (1 - rows[begin:end] @ rows.T).scatter(1, itself[:, None], 0.0)

    def mean(rows: Tensor) -> Tensor:
        parts = in_row_chunks(
            lambda a, b: distances(rows, a, b).sum(), count, count, device=rows.device
        )
        return (sum_of(parts) / pairs).clamp(min=tiny)

    student_mean, teacher_mean = mean(student), mean(teacher)

    def part(begin: int, end: int) -> Tensor:
        gap = distances(student, begin, end) / student_mean
        return (gap - distances(teacher, begin, end) / teacher_mean).square().sum()

    return sum_of(in_row_chunks(part, count, count, device=student.device)) / count**2
