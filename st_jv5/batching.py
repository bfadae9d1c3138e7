"""Batches by tokens: rows sorted by length, each batch as wide as its longest row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BUDGET = {"cpu": 2048}
"""Padded tokens of one batch by device type; 32 rows of 64 tokens measured fastest on two cores."""
BUDGET_ELSEWHERE = 65536


def default_budget(device_type: str) -> int:
    """Padded tokens of one batch where none are asked for."""
    return BUDGET.get(device_type, BUDGET_ELSEWHERE)


def is_left_padded(features: dict[str, Any]) -> bool:
    """Whether any row starts with padding."""
    mask = features.get("attention_mask")
    return mask is not None and not bool(mask[:, 0].all())


def row_chunks(mask: Tensor, budget: int, most_rows: int | None = None) -> list[Tensor]:
    """Cut a batch into chunks of rows of similar length.

    Args:
        mask: ``(n, tokens)``, 1 at real tokens.
        budget: Most padded tokens of one chunk; a row that is longer gets one of its own.
        most_rows: Most rows of one chunk.

    Returns:
        Row indices of each chunk; the chunks with most padded tokens first.
    """
    lengths = mask.sum(dim=1)
    order = torch.argsort(lengths, descending=True, stable=True)
    longest_first = lengths[order].tolist()
    chunks: list[tuple[int, Tensor]] = []
    begin = 0
    while begin < len(order):
        longest = max(1, longest_first[begin])
        fitting = max(1, budget // longest)
        rows = order[begin : begin + min(fitting, most_rows or fitting)]
        chunks.append((longest * len(rows), rows))
        begin += len(rows)
    # The largest first: memory that a larger chunk has left behind serves a smaller one.
    return [rows for _, rows in sorted(chunks, key=lambda chunk: -chunk[0])]


def take_rows(features: dict[str, Any], rows: Tensor | None) -> dict[str, Any]:
    """Some rows of a tokenised batch, trimmed to the longest of them; None takes all as they are.

    Args:
        features: What ``preprocess`` gives: ``(n, tokens)`` tensors and plain values.
        rows: Row indices.
    """
    if rows is None:
        return dict(features)
    mask = features["attention_mask"]
    longest = max(1, int(mask[rows].sum(dim=1).max()))
    span = slice(-longest, None) if is_left_padded(features) else slice(0, longest)

    def take(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value[rows, span] if value.shape[:2] == mask.shape else value[rows]

    return {key: take(value) for key, value in features.items()}


def token_batches(
    features: dict[str, Any], budget: int
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Cut a tokenised batch into smaller ones with less padding.

    Args:
        features: What ``preprocess`` gives. A batch that was flattened for flash attention has no
            padding and comes back whole.
        budget: Most padded tokens of one batch; a row that is longer gets one of its own.

    Yields:
        Row indices, and the features of these rows; the largest batches first.
    """
    mask = features.get("attention_mask")
    if mask is None or "cu_seq_lens_q" in features:
        count = len(features["cu_seq_lens_q"]) - 1 if mask is None else len(mask)
        yield list(range(count)), features
        return
    for rows in row_chunks(mask, budget):
        yield rows.tolist(), take_rows(features, rows)
