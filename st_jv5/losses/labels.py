"""What the columns of a batch mean beside their text: labels, and which texts are equal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from st_jv5.vector_source import VectorRows


def is_scores(labels: Tensor | None) -> bool:
    """Whether the labels are one similarity score per row: ``(B,)``, or float ``(B, 1)``."""
    if labels is None:
        return False
    return labels.ndim == 1 or (labels.is_floating_point() and labels.shape[1:] == (1,))


def teacher_vectors(
    labels: Tensor | None, store: VectorRows | None, device: torch.device | None
) -> Tensor:
    """The teacher's vectors of a batch, for its first ``C`` columns.

    Args:
        labels: int ``(B, C)``, rows of the store, -1 where a text has no vector, or int
            ``(B, C, 1 + L)``, with each text's classes behind its row (:func:`class_ids`); float
            ``(B, C, E)`` or ``(B, E)``, the vectors themselves (a NaN in one: it is missing).
        store: The :class:`~st_jv5.teacher.TeacherStore` that rows are gathered from, or None.
        device: Device of the result; None if there are no labels.

    Returns:
        ``(B, C, E)``, of the dtype they are kept in; NaN where missing.
    """
    if labels is None:
        raise ValueError(
            "teacher vectors are needed, but the batch has no label column; add rows of a teacher "
            "store (int) or the vectors (float) as the column 'label'"
        )
    vectors: Tensor
    if labels.is_floating_point():
        if labels.ndim not in (2, 3):
            raise ValueError(
                f"teacher vectors must be (B, C, E), not {tuple(labels.shape)}; a float per row is "
                f"a score, which distillation cannot use"
            )
        vectors = labels[:, None] if labels.ndim == 2 else labels
    else:
        if labels.ndim == 3:
            labels = labels[..., 0]
        if labels.ndim != 2:
            raise ValueError(f"store rows must be (B, C), not {tuple(labels.shape)}")
        if store is None:
            raise ValueError(
                "the labels are rows of a teacher store, but the loss has none; pass store="
            )
        vectors = store.gather(labels, missing_ok=True, device=device)
    return vectors.detach().to(device)


def names_classes(labels: Tensor | None) -> bool:
    """Whether the labels hold each text's classes: int ``(B, C, 1 + L)``."""
    return labels is not None and not labels.is_floating_point() and labels.ndim == 3


def class_ids(labels: Tensor | None) -> Tensor:
    """The classes of a batch's texts: int ``(B, C, L)``, -1 where a text has fewer than ``L``.

    Args:
        labels: int ``(B, C, 1 + L)``: a row of the teacher store (-1: none), then the classes.
    """
    if labels is None or not names_classes(labels):
        raise ValueError(
            "the classes of texts are needed: a column 'label' of, for each text of a row, a list "
            "of its row in the teacher store (-1: none) and its classes, such as [-1, 3]"
        )
    return labels[..., 1:]


def share_a_class(ones: Tensor, others: Tensor) -> Tensor:
    """Which texts have a class in common: ``(N, L)`` and ``(M, L)`` -> bool ``(N, M)``.

    Example:
        >>> share_a_class(torch.tensor([[0], [1]]), torch.tensor([[1], [-1]])).tolist()
        [[False, False], [True, False]]
    """
    # L is small, and to number the classes anew would wait for a GPU at every dim.
    found = torch.zeros(len(ones), len(others), dtype=torch.bool, device=ones.device)
    for one in ones.unbind(1):
        for other in others.unbind(1):
            found |= (one[:, None] == other) & (one[:, None] >= 0)
    return found


def present(vectors: Tensor) -> Tensor:
    """Where there is a vector: ``(..., E)`` -> bool ``(...)``."""
    return ~torch.isnan(vectors).any(dim=-1)


def text_ids(columns: list[dict[str, Any]]) -> Tensor:
    """A number for each text, int64 ``(B, columns)``; equal tokens have equal numbers.

    The numbers are the same in every process, and nothing of them waits for a GPU. Different texts
    share a number with a chance of about 2**-60 a pair.
    """
    return torch.stack([_numbers(features) for features in columns], dim=1)


def _numbers(features: dict[str, Any]) -> Tensor:
    tokens = features["input_ids"].long() + 1
    if (ends := features.get("cu_seq_lens_q")) is not None:  # flattened into one row
        places = torch.arange(tokens.shape[1], device=tokens.device)
        rows = torch.bucketize(places, ends[1:].long(), right=True)
        weighted = tokens[0] * _factors(places - ends.long()[rows])
        return tokens.new_zeros(len(ends) - 1).index_add(0, rows, weighted)
    mask = features["attention_mask"].long()
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return (tokens * mask * _factors(places)).sum(dim=1)  # sums wrap around at 2**64


def _factors(places: Tensor) -> Tensor:
    """An odd number for each place: SplitMix64, made where the places are."""
    mixed = (places + 1) * -0x61C8864680B583EB
    mixed = (mixed ^ (mixed >> 30)) * -0x40A7B892E31B1A47
    mixed = (mixed ^ (mixed >> 27)) * -0x6B2FB644ECCEEE15
    return mixed ^ (mixed >> 31) | 1
