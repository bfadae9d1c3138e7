"""InfoNCE with in-batch and hard negatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from st_jv5 import functional as F
from st_jv5.losses.embed import EmbeddingLoss

Direction = Literal["query_to_doc", "doc_to_query"]

LOWEST_TEMPERATURE = 0.01
"""A learned temperature stays above this (our choice, as CLIP's)."""


class InfoNCELoss(EmbeddingLoss):
    r"""Tell each query's document from all others of the batch.

    ``query_to_doc``: against all other positives and all hard negatives of the batch (Eq. 2).
    ``doc_to_query``: each positive against the batch's queries. Two directions are summed (Eq. 7).

    Args:
        model: The model being trained.
        temperature: Positive; the start of a learned one.
        directions: One or both of ``"query_to_doc"``, ``"doc_to_query"``.
        learn_temperature: Learn its logarithm. The paper's text calls it learnable, its settings
            give 0.02.

    Inputs:
        query, positive, negative_1..n; labels are ignored.

    Returns:
        ``{"infonce": scalar >= 0}``; a batch of one row without negatives gives 0.

    Example:
        >>> loss = InfoNCELoss(student, directions=("query_to_doc", "doc_to_query"))
        >>> rows = torch.eye(4)
        >>> loss.compute_loss_from_embeddings([rows, rows])["infonce"].item() < 1e-6
        True

    References:
        Eq. 2 and 7 of arXiv:2602.15547. Differs from the stock ``MultipleNegativesRankingLoss``:
        directions are summed, not averaged, and the temperature may learn.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        temperature: float = 0.02,
        directions: Sequence[Direction] = ("query_to_doc",),
        learn_temperature: bool = False,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        unknown = [name for name in directions if name not in get_args(Direction)]
        if unknown or not directions or len(set(directions)) != len(directions):
            raise ValueError(
                f"directions must be one or both of {get_args(Direction)}, not {list(directions)}"
            )
        self.model = model
        self.directions = tuple(directions)
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(temperature), device=model.device),
            requires_grad=learn_temperature,
        )

    @property
    def temperature(self) -> Tensor:
        """The temperature in use, a positive scalar."""
        temperature = self.log_temperature.exp()
        if self.log_temperature.requires_grad:
            temperature = temperature.clamp(min=LOWEST_TEMPERATURE)
        return temperature

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See the class; ``embeddings`` are unit rows ``(B, D)`` per column."""
        if len(embeddings) < 2:
            raise ValueError(f"InfoNCE needs query and positive columns, got {len(embeddings)}")
        queries, positives = embeddings[:2]
        temperature = self.temperature.to(queries.dtype)
        total = queries.new_zeros(())
        if "query_to_doc" in self.directions:
            total = total + F.info_nce(queries, torch.cat(embeddings[1:]), temperature)
        if "doc_to_query" in self.directions:
            total = total + F.info_nce(positives, queries, temperature)
        return {"infonce": total}

    def get_config_dict(self) -> dict[str, Any]:
        return {
            "temperature": round(self.temperature.item(), 6),
            "directions": list(self.directions),
            "learn_temperature": self.log_temperature.requires_grad,
        }
