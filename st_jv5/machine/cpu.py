"""Settings that keep a process on a CPU small, and its training fast."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

KERNELS = "16"
"""Compiled kernels that are kept, one for each shape that is met."""
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""What says how many: oneDNN's own variable, and that of ideep, through which torch calls it and
which holds kernels, too. Both keep 1024 by themselves."""


def bound_kernel_cache() -> None:
    """Limit the kernels that oneDNN keeps, unless the variables of :data:`KERNEL_CACHES` are set.

    Texts of many lengths give batches of many shapes, and oneDNN keeps a kernel with its buffers
    for each: hundreds of megabytes in the end. The commands of st_jv5 call this before their first
    forward pass, when the variables are read. Your own program can call it, too.

    Example:
        >>> bound_kernel_cache()
    """
    for name in KERNEL_CACHES:
        os.environ.setdefault(name, KERNELS)


def give_back_memory() -> None:
    """Give freed memory back to the system; glibc keeps blocks that no later batch fits into.

    Batches of many shapes leave holes of many sizes: a training run grew to several times the
    memory that it used. A call takes some milliseconds. Without glibc it does nothing.

    Example:
        >>> give_back_memory()
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextmanager
def attention_in_float32() -> Iterator[None]:
    """Run attention in float32 in training on a CPU, also under bfloat16 autocast.

    torch's CPU kernel for the backward pass of attention takes 2 to 10 times as long in bfloat16 as
    in float32 (2.13; notes/log.md), which was two fifths of a training step. The setting applies to
    the whole process, to every backbone whose attention is "sdpa", and only to forward passes with
    gradients.

    Example:
        >>> with attention_in_float32():
        ...     pass
    """
    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if (query.device.type, query.dtype) != ("cpu", torch.bfloat16) or not query.requires_grad:
            found: tuple[Tensor, None] = stock(module, query, key, value, mask, **kwargs)
            return found
        if mask is not None and mask.is_floating_point():
            mask = mask.float()
        with torch.autocast("cpu", enabled=False):
            wide = stock(module, query.float(), key.float(), value.float(), mask, **kwargs)
        return wide[0].to(query.dtype), None

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = stock
