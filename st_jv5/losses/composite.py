"""Weighted terms over one forward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize

from st_jv5.losses.embed import base_vectors, embed_columns
from st_jv5.losses.labels import is_scores, teacher_vectors

Terms = Mapping[str, tuple[nn.Module, float]]


class CompositeLoss(nn.Module):
    """A weighted sum of losses that share one forward per batch, at one or more Matryoshka dims.

    At each dim the embeddings are cut and normalised anew, and every term is computed on them; a
    term's value is its mean over the dims. Teacher vectors are gathered once per batch.

    Args:
        model: The model being trained.
        terms: Name -> (loss, weight). A loss of ours or any stock sentence-transformers loss with
            ``compute_loss_from_embeddings``.
        dims: Matryoshka dims; None is the full width alone. Which stages and losses train
            Matryoshka is not published; all of them at all dims is our choice.
        dim_weights: One per dim, scaled to sum 1; None weighs all alike.
        dims_per_step: How many dims, drawn anew each step, to train (the full width always among
            them); None trains all.
        mini_batch_size: Keep the activations of so many rows at a time and compute the others
            again in the backward pass (GradCache): the batch no longer has to fit in memory.
        mini_batch_tokens: The same by padded tokens.

    Inputs:
        text columns and labels as the terms want them.

    Returns:
        One weighted scalar per term; the trainer sums and logs them.

    Example:
        >>> loss = CompositeLoss(student, {
        ...     "infonce": (InfoNCELoss(student), 1.0),
        ...     "gor": (GORLoss(student), 1.0),
        ... }, dims=(128, 384))
    """

    def __init__(
        self,
        model: SentenceTransformer,
        terms: Terms,
        dims: Sequence[int] | None = None,
        dim_weights: Sequence[float] | None = None,
        dims_per_step: int | None = None,
        mini_batch_size: int | None = None,
        mini_batch_tokens: int | None = None,
    ) -> None:
        super().__init__()
        if not terms:
            raise ValueError("a composite loss needs at least one term")
        for name, (loss, _) in terms.items():
            if not callable(getattr(loss, "compute_loss_from_embeddings", None)):
                raise ValueError(
                    f"term {name!r}: {type(loss).__name__} has no compute_loss_from_embeddings"
                )
        width = model.get_embedding_dimension()
        dims = [width] if dims is None else list(dims)
        if not dims or min(dims) < 1 or max(dims) > width or len(set(dims)) != len(dims):
            raise ValueError(f"dims must be distinct and lie in 1..{width}, not {dims}")
        dim_weights = [1.0] * len(dims) if dim_weights is None else list(dim_weights)
        if len(dim_weights) != len(dims) or min(dim_weights) < 0 or sum(dim_weights) <= 0:
            raise ValueError(f"{len(dims)} dims need as many weights >= 0, got {dim_weights}")
        if dims_per_step is not None and not 1 <= dims_per_step <= len(dims):
            raise ValueError(f"dims_per_step must lie in 1..{len(dims)}, not {dims_per_step}")
        for name, value in (
            ("mini_batch_size", mini_batch_size),
            ("mini_batch_tokens", mini_batch_tokens),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, not {value}")
        self.model = model
        self.mini_batch_size = mini_batch_size
        self.mini_batch_tokens = mini_batch_tokens
        self.losses = nn.ModuleDict({name: loss for name, (loss, _) in terms.items()})
        self.weights = {name: float(weight) for name, (_, weight) in terms.items()}
        self.dims = dict(sorted(zip(dims, dim_weights, strict=True), reverse=True))
        self.dims_per_step = dims_per_step

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        columns = list(sentence_features)
        active = self.active_terms(labels)
        bases: Tensor | None = None
        if any(getattr(self.losses[name], "teacher", None) == "base" for name in active):
            bases = base_vectors(self.model, columns)
        embeddings = embed_columns(
            self.model, columns, self.mini_batch_size, self.mini_batch_tokens
        )
        return self._weighted(embeddings, labels, bases, active)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None
    ) -> dict[str, Tensor]:
        """See the class; ``embeddings`` are unit rows ``(B, width)`` per column."""
        return self._weighted(embeddings, labels, None, self.active_terms(labels))

    def active_terms(self, labels: Tensor | None) -> Sequence[str]:
        """The terms that a batch with these labels trains; the others give 0."""
        return list(self.losses)

    def _weighted(
        self,
        embeddings: list[Tensor],
        labels: Tensor | None,
        bases: Tensor | None,
        active: Sequence[str],
    ) -> dict[str, Tensor]:
        zero = embeddings[0].new_zeros(())
        totals = dict.fromkeys(self.losses, zero)
        label_of = {name: self._labels_of(name, labels, bases, embeddings[0]) for name in active}
        dims = self._dims_of_step()
        whole = sum(dims.values())
        for dim, dim_weight in dims.items():
            cut = [normalize(rows[:, :dim], dim=-1) for rows in embeddings]
            for name in active:
                term: Any = self.losses[name]
                value = term.compute_loss_from_embeddings(cut, label_of[name])
                if isinstance(value, dict):
                    value = torch.stack(list(value.values())).sum()
                share = self.weights[name] * dim_weight / whole
                totals[name] = totals[name] + share * value
        return totals

    def _labels_of(
        self, name: str, labels: Tensor | None, bases: Tensor | None, like: Tensor
    ) -> Tensor | None:
        loss = self.losses[name]
        if bases is not None and getattr(loss, "teacher", None) == "base":
            return bases
        store = getattr(loss, "store", None)
        if labels is None or store is None or labels.is_floating_point() or is_scores(labels):
            return labels
        vectors, present = teacher_vectors(labels, store, like)
        return vectors.masked_fill(~present[..., None], torch.nan)

    def _dims_of_step(self) -> dict[int, float]:
        if self.dims_per_step is None or self.dims_per_step == len(self.dims):
            return self.dims
        (full, weight), *others = self.dims.items()
        drawn = torch.randperm(len(others))[: self.dims_per_step - 1].tolist()
        return {full: weight, **dict(others[index] for index in drawn)}

    def get_config_dict(self) -> dict[str, Any]:
        return {
            "terms": {
                name: {
                    "loss": type(loss).__name__,
                    "weight": self.weights[name],
                    **getattr(loss, "get_config_dict", dict)(),
                }
                for name, loss in self.losses.items()
            },
            "dims": dict(self.dims),
            "dims_per_step": self.dims_per_step,
            "mini_batch_size": self.mini_batch_size,
            "mini_batch_tokens": self.mini_batch_tokens,
        }
