"""One forward for all columns of a batch, without padding waste."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain, repeat
from typing import Any

import torch
from sentence_transformers.base.losses.merged_forward import merge_feature_batches
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import get_device_states, set_device_states

from st_jv5.batching import Chunk, Layout, default_budget, plan_chunks, take_rows
from st_jv5.machine.cuda import without_cudnn_attention
from st_jv5.modules.padding import known_padding


def embed_columns(
    model: nn.Module,
    sentence_features: Iterable[dict[str, Any]],
    mini_batch_size: int | None = None,
    mini_batch_tokens: int | None = None,
) -> list[Tensor]:
    """Embed the columns of a batch together, in length-sorted chunks.

    The rows of all columns are sorted by their number of tokens and run in chunks that are each as
    wide as their longest row, then put back in order. The vectors are the same as with one forward
    pass per column, with less padding. Columns that were preprocessed for another task get their
    own forward pass.

    With a mini-batch size or a token limit, the chunks keep no autograd graph and are computed
    again, one by one, in the backward pass: GradCache (Gao et al., 2021). Unlike in
    sentence-transformers' ``CachedLossMixin`` the loss itself stays one graph, so the outer scale
    of the loss (accumulation, mixed precision) reaches its own parameters too. The model's
    gradients then arrive in ``.grad`` only (``backward()``, not ``torch.autograd.grad``).

    Args:
        model: A SentenceTransformer; it may be wrapped (DDP, compiled).
        sentence_features: One feature dict per column, as the trainer collects them.
        mini_batch_size: Most rows of a recomputed chunk.
        mini_batch_tokens: Most padded tokens of a recomputed chunk.

    Returns:
        One ``(B, D)`` tensor per column, with gradients.

    Raises:
        ValueError: There is no column; or a mini-batch is asked for, and the columns are flattened
            into one row (flash attention), which cannot be cut.
    """
    columns = list(sentence_features)
    if not columns:
        raise ValueError("the batch has no text column")
    # DDP readies itself for a backward pass, and syncs buffers, in its own forward: one per batch,
    # since processes may have different numbers of chunks. The others go past it.
    forwards = chain([model], repeat(unwrapped(model)))
    if any(_is_flat(column) for column in columns):
        if mini_batch_size or mini_batch_tokens:
            raise ValueError(
                "mini_batch_size and mini_batch_tokens cannot cut columns that are flattened into "
                "one row: leave them out, load the model with "
                "model_kwargs={'attn_implementation': 'sdpa'}, or train with AdapterTrainer, which "
                "pads its batches"
            )
        return [next(forwards)(dict(column))["sentence_embedding"] for column in columns]
    layout = Layout.of(columns)
    if _may_share_a_forward(columns, layout):
        groups = [(columns, layout)]
    else:
        apart = zip(columns, layout.lengths, layout.left, strict=True)
        groups = [([column], Layout((lengths,), (left,))) for column, lengths, left in apart]
    return [
        vectors
        for group in groups
        for vectors in _embed_sorted(model, forwards, *group, mini_batch_size, mini_batch_tokens)
    ]


class EmbeddingLoss(nn.Module):
    """Base class of losses: it embeds all columns of a batch; a subclass computes the loss.

    ``prepare(columns, labels)`` runs once per batch and returns what the formula needs besides the
    embeddings. ``compute_loss_from_embeddings(embeddings, **prepared)`` returns named scalars;
    :class:`CompositeLoss` calls it at every dim with the embeddings that all its terms share.
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
        """Keyword arguments for ``compute_loss_from_embeddings``: None, or tensors ``(B, ...)``.

        Args:
            columns: Features of each column; None if only the embeddings are known.
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
    model.eval()  # the base is what adapters are measured against: no dropout of theirs
    try:
        with torch.no_grad():
            return torch.stack(embed_columns(unwrapped(model), columns), dim=1)
    finally:
        model.train(was_training)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _may_share_a_forward(columns: list[dict[str, Any]], layout: Layout) -> bool:
    if any(layout.left):
        return False  # rows are joined with padding on the right
    if len({len(lengths) for lengths in layout.lengths}) > 1:
        return False  # where a column ends among the rows is told by their number
    # sentence-transformers' own rule: columns of the same features, task and prompt length.
    return merge_feature_batches([_corner(column) for column in columns]) is not None


def _corner(features: dict[str, Any]) -> dict[str, Any]:
    """A batch's first token: what merging looks at, without its size."""
    return {
        key: value[:1, :1] if value.ndim > 1 else value[:1]
        for key, value in features.items()
        if isinstance(value, Tensor)
    } | {key: value for key, value in features.items() if not isinstance(value, Tensor)}


def _is_flat(features: dict[str, Any]) -> bool:
    return "attention_mask" not in features or "cu_seq_lens_q" in features


def _embed_sorted(
    model: nn.Module,
    forwards: Iterator[nn.Module],
    columns: list[dict[str, Any]],
    layout: Layout,
    mini_batch_size: int | None,
    mini_batch_tokens: int | None,
) -> list[Tensor]:
    device = columns[0]["attention_mask"].device
    budget = mini_batch_tokens or default_budget(device.type)
    chunks, places = plan_chunks(columns, layout, budget, mini_batch_size)
    training = torch.is_grad_enabled()

    # Rows are taken from the columns inside, not before: the backward pass calls this again, and
    # would otherwise have to keep a padded copy of every chunk until then.
    def embed(chunk: Chunk, model: nn.Module) -> Tensor:
        kernels = without_cudnn_attention() if training else nullcontext()
        with kernels, known_padding(chunk.padding):
            output: Tensor = model(take_rows(columns, chunk))["sentence_embedding"]
        return output

    together: Tensor
    if training and (mini_batch_size or mini_batch_tokens):
        # Autograd calls a backward pass only for an input that wants gradients; token ids cannot,
        # and the weights, which do, are reached by that pass itself.
        anchor = torch.empty(0, requires_grad=True)
        together = _GradCache.apply(anchor, embed, model, chunks, device)
    else:
        outputs = [embed(chunk, next(forwards)) for chunk in chunks]
        together = torch.cat(outputs)[places]
    return list(together.chunk(len(columns)))


class _GradCache(torch.autograd.Function):
    """Embeds chunk by chunk without a graph; the backward pass makes each chunk's again.

    The first pass gives the vectors alone. The loss is computed on all of them at once, and its
    backward pass gives each vector's gradient. With those, the second pass runs each chunk again,
    now with its graph, and frees that before the next: memory holds the activations of one chunk,
    whatever the size of the batch.

    Both passes run the same random numbers and autocast: with another dropout mask the gradients
    would belong to other vectors than those that the loss saw. Between them nothing is kept but
    the vectors; torch's checkpointing would keep every chunk's graph, if not its activations.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        embed: Callable[[Chunk, nn.Module], Tensor],
        model: nn.Module,
        chunks: list[Chunk],
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
        for number, chunk in enumerate(chunks):
            # The state before each chunk: how many numbers one draws depends on its size.
            ctx.random[number] = torch.get_rng_state()
            ctx.device_random.append(_device_states(device))
            found = embed(chunk, unwrapped(model))
            if vectors is None:  # width and dtype are known once a chunk has run
                count = sum(len(chunk.rows) for chunk in chunks)
                vectors = torch.empty(count, found.shape[1], dtype=found.dtype, device=device)
            vectors[chunk.rows] = found
        assert vectors is not None
        return vectors

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """The gradients of all rows, into the model's parameters."""
        dtype, enabled = ctx.autocast
        for number, chunk in enumerate(ctx.chunks):
            ids, states = ctx.device_random[number]
            # Gradients gather in the model; DDP, readied by its forward, averages them at the end.
            last = number == len(ctx.chunks) - 1
            with (
                _random_numbers(ctx.device, ctx.random[number].clone(), ids, states),
                torch.enable_grad(),
                torch.autocast(ctx.device.type, dtype, enabled),
            ):
                found = ctx.embed(chunk, ctx.model if last else unwrapped(ctx.model))
            if found.requires_grad:  # not where only the loss's own parameters are trained
                with without_cudnn_attention():  # of blocks that are computed again
                    torch.autograd.backward(found, gradient[chunk.rows])
        return None, None, None, None, None


def _device_states(device: torch.device) -> tuple[list[int], list[Tensor]]:
    """The states of a device's random numbers, and their devices; a Mac's GPU has no number."""
    if device.type == "mps":
        return [], [torch.mps.get_rng_state()]
    ids, states = get_device_states(torch.empty(0, device=device))
    return list(ids), list(states)


@contextmanager
def _random_numbers(
    device: torch.device, cpu_state: Tensor, ids: list[int], states: list[Tensor]
) -> Iterator[None]:
    """Draw from these states inside the block, and go on as before after it.

    The second pass draws again what the first has drawn. Were that not undone, the random numbers
    of all that follows would depend on whether a batch was cut into chunks.
    """
    with torch.random.fork_rng(ids, device_type=device.type):
        torch.set_rng_state(cpu_state)
        if device.type != "mps":  # fork_rng knows nothing of a Mac's GPU
            set_device_states(ids, states, device_type=device.type)
            yield
            return
        before = torch.mps.get_rng_state()
        torch.mps.set_rng_state(states[0])
        try:
            yield
        finally:
            torch.mps.set_rng_state(before)
