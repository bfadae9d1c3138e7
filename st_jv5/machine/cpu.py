"""What keeps a process on a CPU small, and its training fast."""

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
    """Let oneDNN keep few kernels, unless its variables (:data:`KERNEL_CACHES`) say how many.

    Texts of any length give batches of any shape, and a kernel with its buffers is kept for each:
    hundreds of megabytes in the end. Our commands call it before their first forward, which is when
    the variables are read; a program of your own can, too.

    Example:
        >>> bound_kernel_cache()
    """
    for name in KERNEL_CACHES:
        os.environ.setdefault(name, KERNELS)


def give_back_memory() -> None:
    """Give freed blocks back to the system (glibc), which keeps those that no later batch fits.

    Batches of any shape leave holes of any size: a training run grew to several times what it uses.
    A call takes some milliseconds; elsewhere than on glibc it does nothing.

    Example:
        >>> give_back_memory()
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextmanager
def attention_in_float32() -> Iterator[None]:
    """Train attention on a CPU in float32 where autocast has it in bfloat16.

    torch's CPU kernel for the backward pass of attention takes 2 to 10 times as long in bfloat16 as
    in float32 (2.13; notes/log.md), which was two fifths of a training step. It concerns whole
    processes: every backbone whose attention is "sdpa", forwards that have a gradient alone.

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
