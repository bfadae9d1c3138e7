"""One forward for all columns of a batch, without padding waste."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat
from typing import Any

import torch
from sentence_transformers.base.losses.merged_forward import merge_feature_batches
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import get_device_states, set_device_states

from st_jv5.batching import default_budget, is_left_padded, row_chunks, take_rows


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

    With a mini-batch size or token budget the chunks leave no graph behind and are computed again,
    one by one, in the backward pass: GradCache (Gao et al., 2021). Unlike the host's
    ``CachedLossMixin`` the loss itself stays one graph, so the outer scale of the loss
    (accumulation, mixed precision) reaches its own parameters too. The model's gradients then
    arrive in ``.grad`` only (``backward()``, not ``torch.autograd.grad``).

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
    # DDP readies itself for a backward pass, and syncs buffers, in its own forward: one per batch,
    # since processes may have different numbers of chunks. The others go past it.
    forwards = chain([model], repeat(unwrapped(model)))
    groups = [columns] if _may_share_a_forward(columns) else [[column] for column in columns]
    return [
        vectors
        for group in groups
        for vectors in _embed_sorted(model, forwards, group, mini_batch_size, mini_batch_tokens)
    ]


class EmbeddingLoss(nn.Module):
    """A loss that embeds all columns of its batch and leaves the maths to a subclass.

    ``prepare(columns, labels)`` runs once per batch and returns what the maths needs beside the
    embeddings; ``compute_loss_from_embeddings(embeddings, **prepared)`` returns named scalars, and
    a composite calls it at every dim on embeddings that several losses share.
    """

    model: nn.Module

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        columns = list(sentence_features)
        prepared = self.prepare(columns, labels)
        return self.compute_loss_from_embeddings(embed_columns(self.model, columns), **prepared)

    def prepare(
        self, columns: list[dict[str, Any]] | None, labels: Tensor | None
    ) -> dict[str, Tensor | None]:
        """Keyword arguments for the maths: None, or tensors ``(B, ...)``.

        Args:
            columns: Features of each column; None where only the embeddings are known.
            labels: The batch's labels.
        """
        return {"labels": labels}

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
            return torch.stack(embed_columns(unwrapped(model), columns), dim=1)
    finally:
        model.train(was_training)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _may_share_a_forward(columns: list[dict[str, Any]]) -> bool:
    if any(_is_flat(column) or is_left_padded(column) for column in columns):
        return False  # rows are joined with padding on the right
    if len({len(column["attention_mask"]) for column in columns}) > 1:
        return False
    first = torch.zeros(1, dtype=torch.long, device=columns[0]["attention_mask"].device)
    return merge_feature_batches([take_rows([column], first) for column in columns]) is not None


def _is_flat(features: dict[str, Any]) -> bool:
    return "attention_mask" not in features or "cu_seq_lens_q" in features


def _embed_sorted(
    model: nn.Module,
    forwards: Iterator[nn.Module],
    columns: list[dict[str, Any]],
    mini_batch_size: int | None,
    mini_batch_tokens: int | None,
) -> list[Tensor]:
    if _is_flat(columns[0]):  # for flash attention: no padding to save
        return [next(forwards)(dict(column))["sentence_embedding"] for column in columns]
    lengths = torch.cat([column["attention_mask"].sum(dim=1) for column in columns])
    budget = mini_batch_tokens or default_budget(lengths.device.type)
    chunks = row_chunks(lengths, budget, mini_batch_size)

    def embed(rows: Tensor, model: nn.Module) -> Tensor:
        output: Tensor = model(take_rows(columns, rows))["sentence_embedding"]
        return output

    together: Tensor
    if torch.is_grad_enabled() and (mini_batch_size or mini_batch_tokens):
        anchor = torch.empty(0, requires_grad=True)
        together = _GradCache.apply(anchor, embed, model, chunks, lengths.device)
    else:
        outputs = [embed(rows, next(forwards)) for rows in chunks]
        together = torch.cat(outputs)[torch.argsort(torch.cat(chunks))]
    return list(together.chunk(len(columns)))


class _GradCache(torch.autograd.Function):
    """Embeds chunk by chunk without a graph; the backward pass makes each chunk's anew.

    Both passes run the same random numbers and autocast. Between them nothing is kept but the
    vectors; torch's checkpointing would keep every chunk's graph, if not its activations.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        embed: Callable[[Tensor, nn.Module], Tensor],
        model: nn.Module,
        chunks: list[Tensor],
        device: torch.device,
    ) -> Tensor:
        """The vectors of all rows; ``anchor`` makes autograd call the backward pass."""
        kind = device.type
        ctx.embed, ctx.model, ctx.chunks, ctx.device = embed, model, chunks, device
        ctx.autocast = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        # One tensor for all: small ones, kept between large ones that come and go, would hold the
        # memory of those.
        ctx.random = torch.empty(len(chunks), len(torch.get_rng_state()), dtype=torch.uint8)
        ctx.device_random = []
        vectors: Tensor | None = None
        for number, rows in enumerate(chunks):
            ctx.random[number] = torch.get_rng_state()
            ctx.device_random.append(get_device_states(torch.empty(0, device=device)))
            found = embed(rows, unwrapped(model))
            if vectors is None:
                count = sum(map(len, chunks))
                vectors = torch.empty(count, found.shape[1], dtype=found.dtype, device=device)
            vectors[rows] = found
        assert vectors is not None
        return vectors

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """The gradients of all rows, into the model's parameters."""
        dtype, enabled = ctx.autocast
        for number, rows in enumerate(ctx.chunks):
            ids, states = ctx.device_random[number]
            # Gradients gather in the model; DDP, readied by its forward, averages them at the end.
            last = number == len(ctx.chunks) - 1
            with (
                torch.random.fork_rng(ids, device_type=ctx.device.type),
                torch.enable_grad(),
                torch.autocast(ctx.device.type, dtype, enabled),
            ):
                torch.set_rng_state(ctx.random[number].clone())
                set_device_states(ids, states, device_type=ctx.device.type)
                found = ctx.embed(rows, ctx.model if last else unwrapped(ctx.model))
            if found.requires_grad:  # not where only the loss's own parameters are trained
                torch.autograd.backward(found, gradient[rows])
        return None, None, None, None, None
