"""Adapters folded into copies of the weights that they touch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from st_jv5.modules.locks import MERGING, forkable_lock
from st_jv5.modules.routed_linear import RoutedLinear
from st_jv5.task_table import Blend

Weights = Mapping[nn.Module, Tensor]

SAMPLED = 4
"""Elements of each row and of each column of a matrix that are looked at, about."""
LOOK_SECONDS = 1.0
"""How often values are looked at on a GPU, at most: that means to wait for it."""


def fold(layer: RoutedLinear, adapter: str | Blend) -> Tensor:
    """The layer's weight with an adapter folded in: a new tensor, ``W + scaling * B @ A``.

    Of a blend, the sum of its adapters' products. Rounded once: half-precision factors would round
    their product, too.
    """
    weight = layer.get_base_layer().weight
    # Tensors made in inference mode, inside encode, could not be saved or trained on.
    with torch.inference_mode(False), torch.no_grad():
        wide = torch.promote_types(weight.dtype, torch.float32)
        folded = weight.to(wide)
        for name, scaling in layer.parts(adapter):
            b, a = (half[name].weight.to(wide) for half in (layer.lora_B, layer.lora_A))
            folded = torch.addmm(folded, b, a, alpha=scaling)
        return folded.to(weight.dtype)


class MergedAdapters:
    """Which adapters of a router are merged, and their weights.

    A merged adapter costs no time in a forward pass, but memory: a copy of every weight that it
    changes. The backbone's own tensors are neither changed nor moved, so nothing drifts and other
    threads may run other adapters. A copy is used only while the tensors that it was made of are
    the same: after training, loading or moving the model it is made again. A layer with a hook of
    torch's is left unmerged. torch does not count writes through ``.data``. They are noticed if
    they changed a whole row or column of a matrix, on a GPU within :data:`LOOK_SECONDS` seconds.
    After writing single elements through ``.data``, call :meth:`clear`. To look at them takes time
    in every batch, which :meth:`unchanging` saves.

    A batch is merged by its own size, not by what ran before it, so that equal batches give equal
    bits in any order and from any thread.

    Attributes:
        least_tokens: Batches with at least this many padded tokens are merged; None never merges,
            except inside :func:`st_jv5.adapters.merged`. With the default, merging has paid off
            after two batches.
        most: Most merged adapters to keep; the least recently used one is dropped first. None: no
            limit, while each copy takes at most a quarter of the free memory.
        most_blends: How many of them may be blends, of which a program can use any number.
    """

    FREE_SHARE = 0.25

    def __init__(
        self, least_tokens: int | None = 256, most: int | None = None, most_blends: int = 4
    ) -> None:
        self.least_tokens = least_tokens
        self.most = most
        self.most_blends = most_blends
        # Copies are kept from batch to batch: folding one costs more than a single batch saves.
        # The most recently used last.
        self._kept: dict[str | Blend, tuple[Weights, _Source]] = {}
        # How many blocks of `merged` each adapter is in: two threads may be in one at once.
        self._pinned: dict[str | Blend, int] = {}
        self._unchanging = 0  # blocks
        # One thread folds at a time: two would make the same copy twice, and count room that the
        # other takes. A server that forks its workers must not leave them a lock that is held.
        self._lock = forkable_lock(MERGING)

    # A lock cannot be pickled or copied, and copies of weights are quickly made anew.
    def __reduce__(self) -> Any:
        return MergedAdapters, (self.least_tokens, self.most, self.most_blends)

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, adapter: object) -> bool:
        return adapter in self._kept

    def clear(self) -> None:
        """Forget all copies; those of a running ``merged`` are made again when needed."""
        with self._lock:
            self._kept.clear()

    def weights(
        self, adapter: str | Blend, tokens: int, layers: Callable[[], Iterable[RoutedLinear]]
    ) -> Weights | None:
        """The merged weights for a forward of so many padded tokens, or None: run it unmerged."""
        with self._lock:
            if self._unchanging and isinstance(adapter, str) and adapter in self._kept:
                return self._kept[adapter][0]
            pinned = adapter in self._pinned
            if not pinned and (self.least_tokens is None or tokens < self.least_tokens):
                return None
            weights, source = self._kept.get(adapter, (None, None))
            try:
                if weights is None or source is None or not source.is_same():
                    # First let go of the stale copy, so that its memory counts as free.
                    self._kept.pop(adapter, None)
                    chosen = [layer for layer in layers() if _can_fold(layer, adapter)]
                    if not chosen or not (self._make_room(adapter, chosen) or pinned):
                        return None
                    source = _Source(adapter, chosen)
                    weights = {layer: fold(layer, adapter) for layer in chosen}
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError) and not pinned:
                    return None  # unmerged the batch may still fit, more slowly
                if "version counter" not in str(error):
                    raise
                return None  # weights made in inference mode are written to without a trace
            # Taken out and put in again: a dict keeps the order in which its keys came.
            self._kept.pop(adapter, None)
            self._kept[adapter] = weights, source
        # A forward goes on with these tensors without the lock, also when another thread clears or
        # replaces them meanwhile: they live as long as somebody holds them, and nobody writes them.
        return weights

    @contextmanager
    def pinned(self, adapter: str | Blend) -> Iterator[None]:
        """Inside the block every forward of the adapter is merged, the first one too."""
        with self._lock:
            was_kept = adapter in self._kept
            self._pinned[adapter] = self._pinned.get(adapter, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._pinned[adapter] -= 1
                if not self._pinned[adapter]:
                    del self._pinned[adapter]
                    if not was_kept:  # the block has made it, so its memory goes with the block
                        self._kept.pop(adapter, None)

    @contextmanager
    def unchanging(self) -> Iterator[None]:
        """Inside the block, which no weight changes in, a copy that is there serves every batch."""
        with self._lock:
            self._unchanging += 1
        try:
            yield
        finally:
            with self._lock:
                self._unchanging -= 1

    def _make_room(self, adapter: str | Blend, layers: Sequence[RoutedLinear]) -> bool:
        """Whether one more copy may be made."""
        if isinstance(adapter, Blend):
            blends = [kept for kept in self._kept if isinstance(kept, Blend)]
            if len(blends) >= self.most_blends:
                oldest = next((blend for blend in blends if blend not in self._pinned), None)
                if oldest is None:
                    return False
                del self._kept[oldest]
        idle = [kept for kept in self._kept if kept not in self._pinned]
        if self.most is None:
            needed = sum(layer.get_base_layer().weight.nbytes for layer in layers)
            device = layers[0].get_base_layer().weight.device
            if needed <= free_memory(device) * self.FREE_SHARE:
                return True
        elif len(self._kept) < self.most:
            return True
        if not idle:
            return False
        del self._kept[idle[0]]
        return True


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, or in main memory if the device does not report them.

    Memory that torch keeps there for later tensors counts as free.
    """
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    return int(psutil.virtual_memory().available)


def _can_fold(layer: RoutedLinear, adapter: str | Blend) -> bool:
    return (
        bool(layer.parts(adapter))
        and type(layer.get_base_layer()) is nn.Linear
        and not _has_hooks(layer, adapter)
    )


def _has_hooks(layer: RoutedLinear, adapter: str | Blend) -> bool:
    """Whether a layer that a copy would stand for has a hook, which the copy would pass by."""
    inner: list[nn.Module] = [layer.get_base_layer()]
    for name, _ in layer.parts(adapter):
        inner += [half[name] for half in (layer.lora_A, layer.lora_B, layer.lora_dropout)]
    return any(module._forward_hooks or module._forward_pre_hooks for module in inner)


class _Source:
    """What a copy was made of, and whether that is still the same."""

    def __init__(self, adapter: str | Blend, layers: Iterable[Any]) -> None:
        self.adapter = adapter
        self.layers = list(layers)
        # torch counts a tensor's writes, which costs nothing to ask, but not those through `.data`,
        # as some loaders write. So values are looked at, too.
        self.written = self._written()
        self.values = self._values()
        # To compare values on a GPU means to wait for it: not at every batch.
        self.waits = self.values.device.type != "cpu"
        self.looked = time.monotonic()

    def _weights(self) -> Iterator[Tensor]:
        for layer in self.layers:
            yield layer.base_layer.weight
            for name, _ in layer.parts(self.adapter):
                yield layer.lora_A[name].weight
                yield layer.lora_B[name].weight

    def _written(self) -> list[Any]:
        """Where each weight lies, and how often it was written to; then the scalings."""
        places: list[Any] = [(weight.data_ptr(), weight._version) for weight in self._weights()]
        return places + [layer.parts(self.adapter) for layer in self.layers]

    def _values(self) -> Tensor:
        """A few elements of every row and of every column."""
        with torch.inference_mode(False), torch.no_grad():
            return torch.cat([sample for w in self._weights() for sample in _samples(w)])

    def is_same(self) -> bool:
        """Whether no weight was moved or written to; through ``.data`` torch does not count."""
        if self.written != self._written():
            return False
        if any(_has_hooks(layer, self.adapter) for layer in self.layers):
            return False
        if self.waits and time.monotonic() - self.looked < LOOK_SECONDS:
            return True
        self.looked = time.monotonic()
        return torch.equal(self.values, self._values())


def _samples(weight: Tensor) -> Iterator[Tensor]:
    """Some elements from all over a matrix."""
    rows, columns = (max(1, size // SAMPLED) for size in weight.shape)
    yield weight.detach()[::rows].reshape(-1)
    yield weight.detach()[:, ::columns].reshape(-1)
