"""Global orthogonal regularisation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_jv5 import functional as F
from st_jv5.losses.embed import EmbeddingLoss


class GORLoss(EmbeddingLoss):
    r"""Penalise similar embeddings of unrelated texts.

    .. math:: L = \sum_{c} \frac{1}{B(B-1)} \sum_{i \neq j} (x^c_i \cdot x^c_j)^2

    over the columns ``c`` (queries, positives) with unit rows ``x``.

    Args:
        model: The model being trained.

    Inputs:
        one or more text columns; columns after the second (hard negatives) and labels are ignored.

    Returns:
        ``{"gor": scalar >= 0}``; a batch of one row gives 0.

    Example:
        >>> unrelated = torch.eye(4)
        >>> GORLoss(student).compute_loss_from_embeddings([unrelated, unrelated])["gor"].item()
        0.0

    References:
        Eq. 3 of arXiv:2602.15547. Differs from the stock loss: no hinge at 1/D, no mean term, no
        hard negatives.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        return super().forward(list(sentence_features)[:2], labels)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See the class; ``embeddings`` are unit rows ``(B, D)`` per column."""
        terms = [F.mean_squared_offdiagonal(rows) for rows in embeddings[:2]]
        return {"gor": sum(terms[1:], terms[0])}

    def get_config_dict(self) -> dict[str, Any]:
        return {}
