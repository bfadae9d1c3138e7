"""One forward for all columns of a batch, without padding waste."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers.base.losses.merged_forward import merge_feature_batches
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from st_jv5.batching import default_budget, is_left_padded, token_batches


def embed_columns(
    model: nn.Module,
    sentence_features: Iterable[dict[str, Any]],
    mini_batch_size: int | None = None,
    mini_batch_tokens: int | None = None,
) -> list[Tensor]:
    """Embed the columns of a batch together, in length-sorted chunks.

    The rows of all columns are sorted by their number of tokens and run in chunks that are each as
    wide as their longest row, then put back in order: the same vectors as one forward per column,
    with less padding. Columns that were preprocessed differently (another task) keep forwards of
    their own.

    With a mini-batch size or token budget the activations of a chunk are dropped and computed
    again, chunk by chunk, in the backward pass: GradCache (Gao et al., 2021), by way of torch's
    checkpointing. Unlike the host's ``CachedLossMixin`` the loss stays one graph, so the outer
    scale of the loss (accumulation, mixed precision) reaches its own parameters too.

    Args:
        model: A SentenceTransformer, perhaps wrapped (DDP, compiled).
        sentence_features: One feature dict per column, as the trainer collects them.
        mini_batch_size: Most rows of a recomputed chunk.
        mini_batch_tokens: Most padded tokens of a recomputed chunk.

    Returns:
        One ``(B, D)`` tensor per column, with gradients.
    """
    columns = list(sentence_features)
    if not columns:
        raise ValueError("the batch has no text column")
    # The host's merge pads on the right, so left-padded columns stay apart.
    merged = None
    if len(columns) > 1 and not any(map(is_left_padded, columns)):
        merged = merge_feature_batches(columns)
    if merged is not None:
        together = _embed_sorted(model, merged, mini_batch_size, mini_batch_tokens)
        return list(together.chunk(len(columns)))
    return [_embed_sorted(model, c, mini_batch_size, mini_batch_tokens) for c in columns]


class EmbeddingLoss(nn.Module):
    """A loss that embeds all columns of its batch and leaves the maths to a subclass.

    ``compute_loss_from_embeddings(embeddings, labels)`` returns named scalars; a composite calls it
    on embeddings that several losses share.
    """

    model: nn.Module

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        embeddings = embed_columns(self.model, sentence_features)
        return self.compute_loss_from_embeddings(embeddings, labels)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None
    ) -> dict[str, Tensor]:
        """The loss of unit rows ``(B, D)`` per column."""
        raise NotImplementedError


def base_vectors(model: nn.Module, sentence_features: list[dict[str, Any]]) -> Tensor:
    """The backbone's vectors without adapter, without gradients or dropout: ``(B, columns, D)``."""
    columns = [{**features, "task": "base"} for features in sentence_features]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return torch.stack(embed_columns(model, columns), dim=1)
    finally:
        model.train(was_training)


def _embed_sorted(
    model: nn.Module,
    features: dict[str, Any],
    mini_batch_size: int | None,
    mini_batch_tokens: int | None,
) -> Tensor:
    device = features["input_ids"].device.type
    budget = mini_batch_tokens or default_budget(device)
    recompute = torch.is_grad_enabled() and bool(mini_batch_size or mini_batch_tokens)

    def forward(chunk: dict[str, Any]) -> Tensor:
        output: Tensor = model(dict(chunk))["sentence_embedding"]
        return output

    outputs: list[Tensor] = []
    order: list[int] = []
    for rows, chunk in token_batches(features, budget, mini_batch_size):
        if recompute:
            outputs.append(checkpoint(forward, chunk, use_reentrant=False))
        else:
            outputs.append(forward(chunk))
        order += rows
    together = torch.cat(outputs)
    return together[torch.argsort(torch.tensor(order, device=together.device))]
