"""Batches by tokens: rows sorted by length, each batch as wide as its longest row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

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


def row_chunks(lengths: Tensor, budget: int, most_rows: int | None = None) -> list[Tensor]:
    """Cut a batch into chunks of rows of similar length.

    Args:
        lengths: ``(n,)``, real tokens of each row.
        budget: Most padded tokens of one chunk; a row that is longer gets one of its own.
        most_rows: Most rows of one chunk.

    Returns:
        Row indices of each chunk, ascending; the chunks with most padded tokens first.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    longest_first = lengths[order].tolist()
    chunks: list[tuple[int, Tensor]] = []
    begin = 0
    while begin < len(order):
        longest = max(1, longest_first[begin])
        fitting = max(1, budget // longest)
        rows = order[begin : begin + min(fitting, most_rows or fitting)]
        chunks.append((longest * len(rows), rows.sort().values))
        begin += len(rows)
    # The largest first: memory that a larger chunk has left behind serves a smaller one.
    return [rows for _, rows in sorted(chunks, key=lambda chunk: -chunk[0])]


def take_rows(columns: Sequence[dict[str, Any]], rows: Tensor) -> dict[str, Any]:
    """Some rows of tokenised columns that stand one below the other, as wide as the longest.

    Args:
        columns: What ``preprocess`` gives: ``(n, tokens)`` tensors and plain values. Several must
            have as many rows, and be padded on the right.
        rows: Ascending indices into the ``columns x n`` rows.
    """
    count = len(columns[0]["attention_mask"])
    bounds = torch.arange(len(columns) + 1, device=rows.device) * count
    cuts = torch.searchsorted(rows, bounds).tolist()
    parts = [
        take(column, rows[begin:end] - number * count)
        for number, (column, begin, end) in enumerate(zip(columns, cuts, cuts[1:], strict=False))
        if end > begin
    ]
    if len(parts) == 1:
        return parts[0]
    widest = max(part["attention_mask"].shape[1] for part in parts)

    def join(key: str) -> Any:
        values = [part[key] for part in parts]
        if not isinstance(values[0], Tensor):
            return values[0]
        if values[0].ndim > 1:
            values = [pad(value, (0, widest - value.shape[1])) for value in values]
        return torch.cat(values)

    return {key: join(key) for key in parts[0]}


def take(features: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """Some rows of a tokenised batch, as wide as the longest of them."""
    mask = features["attention_mask"]
    longest = max(1, int(mask[rows].sum(dim=1).max()))
    span = slice(-longest, None) if is_left_padded(features) else slice(0, longest)

    def rows_of(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value[rows, span] if value.shape[:2] == mask.shape else value[rows]

    return {key: rows_of(value) for key, value in features.items()}
