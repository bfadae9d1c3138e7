"""Batches by tokens: rows sorted by length, each batch as wide as its longest row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from st_jv5.modules.padding import Padding

BUDGET = {"cpu": 2048}
"""Padded tokens of a batch, by device type; 32 rows of 64 tokens were the fastest on two cores."""
BUDGET_ELSEWHERE = 65536


def default_budget(device_type: str) -> int:
    """Default number of padded tokens of a batch."""
    return BUDGET.get(device_type, BUDGET_ELSEWHERE)


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
    # Longest first, each chunk filled up to the budget: rows of a chunk are then nearly as long,
    # so that padding is little, and a long row does not make short ones as wide as itself.
    while begin < len(order):
        longest = max(1, longest_first[begin])
        fitting = max(1, budget // longest)
        rows = order[begin : begin + min(fitting, most_rows or fitting)]
        chunks.append((longest * len(rows), rows.sort().values))
        begin += len(rows)
    # The largest first: memory that a larger chunk has left behind serves a smaller one.
    return [rows for _, rows in sorted(chunks, key=lambda chunk: -chunk[0])]


@dataclass(frozen=True)
class Layout:
    """How long the rows of a batch's columns are, known on the CPU."""

    lengths: tuple[Tensor, ...]
    """``(n,)`` per column: real tokens of each row."""
    left: tuple[bool, ...]
    """Per column: whether any row starts with padding."""

    @classmethod
    def of(cls, columns: Sequence[dict[str, Any]]) -> Layout:
        """Read it off the attention masks; on a GPU this waits once, whatever the batch."""
        masks = [column["attention_mask"] for column in columns]
        told = torch.cat([torch.stack([m.sum(dim=1), m[:, 0].long()]) for m in masks], dim=1).cpu()
        parts = told.split([len(mask) for mask in masks], dim=1)
        return cls(
            tuple(part[0] for part in parts), tuple(not bool(part[1].all()) for part in parts)
        )


@dataclass(frozen=True)
class Chunk:
    """Rows of a batch that run together; the columns stand one below the other."""

    rows: Tensor
    """``(n,)``, ascending, on the batch's device."""
    cuts: tuple[int, ...]
    """Where each column's rows begin among them, and the end of the last."""
    widths: tuple[int, ...]
    """Tokens of each column's longest row here; 0 where it has none."""
    left: bool
    """Whether the columns are padded in front."""
    full: bool
    """Whether all its rows are as long, so that no padding is left."""

    @property
    def padding(self) -> Padding:
        """Where its shorter rows are padded."""
        return "none" if self.full else "left" if self.left else "right"


def plan_chunks(
    columns: Sequence[dict[str, Any]],
    layout: Layout,
    budget: int,
    most_rows: int | None = None,
) -> tuple[list[Chunk], Tensor]:
    """Cut a batch into chunks (:func:`row_chunks`) without asking its device anything.

    Args:
        columns: What ``preprocess`` gives. Several must have as many rows, and be padded on the
            right.
        layout: Lengths of the columns' rows.
        budget: Most padded tokens of one chunk.
        most_rows: Most rows of one chunk.

    Returns:
        The chunks, and where each row of the batch stands in them, ``(n,)`` on the device.
    """
    device = columns[0]["attention_mask"].device
    lengths = torch.cat(layout.lengths)
    planned = row_chunks(lengths, budget, most_rows)
    order = torch.cat(planned)
    # One copy to the device for all chunks: a copy for each would cost a launch, and a size read
    # back from the device would wait for it.
    there = torch.stack([order, torch.argsort(order)]).to(device, non_blocking=True)
    bounds = torch.arange(len(columns) + 1) * len(layout.lengths[0])
    chunks = []
    for rows, placed in zip(planned, there[0].split([len(rows) for rows in planned]), strict=True):
        cuts = torch.searchsorted(rows, bounds).tolist()
        by_column = [lengths[rows[begin:end]] for begin, end in pairwise(cuts)]
        widths = tuple(max(1, int(part.max())) if len(part) else 0 for part in by_column)
        full = int(lengths[rows].sum()) == max(widths) * len(rows)
        chunks.append(Chunk(placed, tuple(cuts), widths, layout.left[0], full))
    return chunks, there[1]


def take_rows(columns: Sequence[dict[str, Any]], chunk: Chunk) -> dict[str, Any]:
    """A chunk's rows of tokenised columns, as wide as the longest of them."""
    count = len(columns[0]["attention_mask"])
    parts = [
        take(column, chunk.rows[begin:end] - number * count, width, chunk.left)
        for number, (column, (begin, end), width) in enumerate(
            zip(columns, pairwise(chunk.cuts), chunk.widths, strict=True)
        )
        if end > begin
    ]
    widest = max(chunk.widths)

    def join(key: str) -> Any:
        values = [part[key] for part in parts]
        if not isinstance(values[0], Tensor):
            return values[0]
        if values[0].ndim > 1:
            values = [pad(value, (0, widest - value.shape[1])) for value in values]
        return torch.cat(values)

    return parts[0] if len(parts) == 1 else {key: join(key) for key in parts[0]}


def take(features: dict[str, Any], rows: Tensor, width: int, left: bool) -> dict[str, Any]:
    """Some rows of a tokenised batch, of so many tokens each; ``left`` if padded in front."""
    mask = features["attention_mask"]
    span = slice(-width, None) if left else slice(0, width)

    def rows_of(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value[rows, span] if value.shape[:2] == mask.shape else value[rows]

    return {key: rows_of(value) for key, value in features.items()}
