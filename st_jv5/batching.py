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


def token_batches(
    features: dict[str, Any], budget: int, most_rows: int | None = None
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Cut a tokenised batch into smaller ones with less padding.

    Args:
        features: What ``preprocess`` gives: ``(n, tokens)`` tensors and plain values. A batch that
            was flattened for flash attention has no padding and comes back whole.
        budget: Most padded tokens of one batch; a row that is longer gets one of its own.
        most_rows: Most rows of one batch.

    Yields:
        Row indices, and the features of these rows, trimmed to their longest; longest rows first.
    """
    mask = features.get("attention_mask")
    if mask is None or "cu_seq_lens_q" in features:
        count = len(features["cu_seq_lens_q"]) - 1 if mask is None else len(mask)
        yield list(range(count)), features
        return
    lengths = mask.sum(dim=1)
    order = torch.argsort(lengths, descending=True, stable=True)
    longest_first = lengths[order].tolist()
    left_padded = is_left_padded(features)
    rows, width = mask.shape
    begin = 0
    while begin < rows:
        longest = max(1, longest_first[begin])
        fitting = max(1, budget // longest)
        chosen = order[begin : begin + min(fitting, most_rows or fitting)]
        span = slice(width - longest, None) if left_padded else slice(0, longest)
        yield (
            chosen.tolist(),
            {
                key: _take(value, chosen, span, mask.shape) if isinstance(value, Tensor) else value
                for key, value in features.items()
            },
        )
        begin += len(chosen)


def _take(value: Tensor, rows: Tensor, span: slice, shape: torch.Size) -> Tensor:
    taken = value[rows]
    return taken[:, span] if value.shape[:2] == shape else taken
