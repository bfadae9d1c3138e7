"""InfoNCE with in-batch and hard negatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize

from st_jv5 import functional as F
from st_jv5.losses.embed import EmbeddingLoss
from st_jv5.losses.labels import class_ids, share_a_class, teacher_vectors, text_ids
from st_jv5.losses.processes import average_gradients
from st_jv5.vector_source import VectorRows

Direction = Literal["query_to_doc", "doc_to_query"]

LOWEST_TEMPERATURE = 0.01
"""A learned temperature stays above this (our choice, as CLIP's)."""


class InfoNCELoss(EmbeddingLoss):
    r"""Rank each query's document above all other documents of the batch.

    Direction ``query_to_doc``: a query's negatives are all other positives and all hard negatives
    of the batch (Eq. 2). Direction ``doc_to_query``: a positive's negatives are the other queries
    of the batch. Two directions are summed (Eq. 7).

    Args:
        model: The model being trained.
        temperature: Positive; the initial value if the temperature is learned.
        directions: One or both of ``"query_to_doc"``, ``"doc_to_query"``.
        learn_temperature: Learn the logarithm of the temperature. The paper's text calls the
            temperature learnable; its table of settings gives 0.02.
        false_negative_margin: Leave out negatives whose cosine to the query, by the teacher's
            vectors, is above the positive's by more than this margin, such as 0.1. A negative
            without a teacher vector is kept. None, as in the paper, keeps all.
        mask_equal_texts: Leave out negatives that are equal, token by token, to the query or its
            positive, and the positives of other rows with the same query. The batch sampler
            ``NO_DUPLICATES`` keeps equal texts apart within one process only; gathered batches of
            several processes may contain some. Prompts count as tokens. If
            ``compute_loss_from_embeddings`` is called without ``texts``, nothing is left out.
        mask_equal_classes: Leave out negatives that share a class with the query (the anchor); the
            labels hold the classes of every text, ``(B, columns, 1 + L)``. With False, as in the
            paper, texts of the query's own class, 6 to 7% of a batch of topics, are pushed away,
            too.
        store: The teacher store that int labels are rows of, for the margin.

    Inputs:
        query, positive, negative_1..n. Labels are needed for ``false_negative_margin`` (teacher
        vectors, as in :class:`ProjectedCosineDistillLoss`) and for ``mask_equal_classes``.

    Returns:
        ``{"infonce": scalar >= 0}``; a batch of one row without negatives gives 0.

    Example:
        >>> loss = InfoNCELoss(student, directions=("query_to_doc", "doc_to_query"))
        >>> rows = torch.eye(4)
        >>> loss.compute_loss_from_embeddings([rows, rows])["infonce"].item() < 1e-6
        True

    References:
        Eq. 2 and 7 of arXiv:2602.15547. Differs from the stock ``MultipleNegativesRankingLoss``:
        directions are summed, not averaged, and the temperature can be learned.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        temperature: float = 0.02,
        *,
        directions: Sequence[Direction] = ("query_to_doc",),
        learn_temperature: bool = False,
        false_negative_margin: float | None = None,
        mask_equal_texts: bool = True,
        store: VectorRows | None = None,
        mask_equal_classes: bool = False,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        unknown = [name for name in directions if name not in get_args(Direction)]
        if unknown or not directions or len(set(directions)) != len(directions):
            raise ValueError(
                f"directions must be one or both of {get_args(Direction)}, not {list(directions)}"
            )
        if false_negative_margin is not None and not -2 <= false_negative_margin <= 2:
            raise ValueError(
                f"false_negative_margin is a difference of cosines, not {false_negative_margin}"
            )
        self.model = model
        self.false_negative_margin = false_negative_margin
        self.mask_equal_texts = mask_equal_texts
        self.mask_equal_classes = mask_equal_classes
        self.store = store
        self.directions = tuple(directions)
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(temperature), device=model.device),
            requires_grad=learn_temperature,
        )
        average_gradients(self.log_temperature, model)

    @property
    def temperature(self) -> Tensor:
        """The temperature in use, a positive scalar."""
        temperature = self.log_temperature.exp()
        if self.log_temperature.requires_grad:
            temperature = temperature.clamp(min=LOWEST_TEMPERATURE)
        return temperature

    def prepare(
        self, columns: list[dict[str, Any]] | None, labels: Tensor | None
    ) -> dict[str, Tensor | None]:
        """What shows false negatives: teacher vectors, a number for each text, and classes."""
        prepared: dict[str, Tensor | None] = {"labels": None}
        if self.false_negative_margin is not None:
            device = self.log_temperature.device
            prepared["labels"] = teacher_vectors(labels, self.store, device)
        if self.mask_equal_texts and columns is not None:
            prepared["texts"] = text_ids(columns)
        if self.mask_equal_classes:
            prepared["classes"] = class_ids(labels)
        return prepared

    def compute_loss_from_embeddings(
        self,
        embeddings: list[Tensor],
        labels: Tensor | None = None,
        *,
        texts: Tensor | None = None,
        classes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """See the class; ``embeddings`` are unit rows ``(B, D)`` per column.

        ``texts``, int64 ``(B, columns)``, says which texts are equal, ``classes``, int64
        ``(B, columns, L)``, which share a class.
        """
        if len(embeddings) < 2:
            raise ValueError(f"InfoNCE needs query and positive columns, got {len(embeddings)}")
        if not self.mask_equal_texts:
            texts = None
        if self.mask_equal_classes:
            if classes is None:
                classes = class_ids(labels)
            if classes.shape[1] < len(embeddings):
                raise ValueError(
                    f"mask_equal_classes needs the classes of all {len(embeddings)} columns, but "
                    f"the labels have those of {classes.shape[1]}"
                )
            classes = classes.to(embeddings[0].device)
        queries, positives = embeddings[:2]
        temperature = self.temperature.to(queries.dtype)
        total = queries.new_zeros(())
        if "query_to_doc" in self.directions:
            excluded = self._false_negatives(0, range(1, len(embeddings)), labels, texts, classes)
            total = total + F.info_nce(
                queries, torch.cat(embeddings[1:]), temperature, excluded=excluded
            )
        if "doc_to_query" in self.directions:
            excluded = self._false_negatives(1, range(1), labels, texts, classes)
            total = total + F.info_nce(positives, queries, temperature, excluded=excluded)
        return {"infonce": total}

    def _false_negatives(
        self,
        anchor: int,
        candidates: range,
        labels: Tensor | None,
        texts: Tensor | None,
        classes: Tensor | None,
    ) -> F.RowMask | None:
        """Which candidates are no negatives of which anchor, for rows of anchors.

        ``anchor`` and ``candidates`` are columns; the first candidate column holds the positives.
        """
        masks: list[F.RowMask] = []
        if texts is not None:
            masks.append(_equal_texts(texts, anchor, candidates))
        if classes is not None:
            others = classes[:, candidates.start : candidates.stop].transpose(0, 1).flatten(0, 1)
            masks.append(partial(_shared_classes, classes[:, anchor], others))
        if self.false_negative_margin is not None:
            vectors = teacher_vectors(labels, self.store, self.log_temperature.device)
            masks.append(self._nearer(vectors, anchor, candidates))
        return partial(_any_of, masks) if masks else None

    def _nearer(self, vectors: Tensor, anchor: int, candidates: range) -> F.RowMask:
        """Candidates that the teacher finds nearer than the positive, by the margin."""
        if vectors.shape[1] < 2:
            raise ValueError(
                "false_negative_margin needs the teacher's vectors of queries and positives, "
                "but the labels have one column"
            )
        assert self.false_negative_margin is not None
        known = [c for c in candidates if c < vectors.shape[1]]
        units = normalize(vectors.float(), dim=-1)
        anchors, positives = units[:, anchor], units[:, candidates[0]]
        others = torch.cat([units[:, c] for c in known])
        bounds = (anchors * positives).sum(dim=-1) + self.false_negative_margin
        unknown = len(anchors) * (len(candidates) - len(known))

        def nearer(begin: int, end: int) -> Tensor:
            near = anchors[begin:end] @ others.T > bounds[begin:end, None]
            return nn.functional.pad(near, (0, unknown))

        return nearer

    def get_config_dict(self) -> dict[str, Any]:
        return {
            "temperature": round(self.temperature.item(), 6),
            "directions": list(self.directions),
            "learn_temperature": self.log_temperature.requires_grad,
            "false_negative_margin": self.false_negative_margin,
            "mask_equal_texts": self.mask_equal_texts,
            "mask_equal_classes": self.mask_equal_classes,
        }


def _equal_texts(texts: Tensor, anchor: int, candidates: range) -> F.RowMask:
    """Candidates that are the anchor's own text or its positive's, or answer an equal anchor."""
    anchors, positives = texts[:, anchor], texts[:, candidates[0]]
    candidate_texts = texts[:, candidates.start : candidates.stop].T.flatten()
    asked = nn.functional.pad(anchors, (0, len(candidate_texts) - len(anchors)))
    answers = torch.arange(len(candidate_texts), device=texts.device) < len(anchors)

    def equal(begin: int, end: int) -> Tensor:
        own, positive = anchors[begin:end, None], positives[begin:end, None]
        return (candidate_texts == positive) | (candidate_texts == own) | ((asked == own) & answers)

    return equal


def _shared_classes(anchors: Tensor, others: Tensor, begin: int, end: int) -> Tensor:
    return share_a_class(anchors[begin:end], others)


def _any_of(masks: Sequence[F.RowMask], begin: int, end: int) -> Tensor:
    found = masks[0](begin, end)
    for mask in masks[1:]:
        found = found | mask(begin, end)
    return found
