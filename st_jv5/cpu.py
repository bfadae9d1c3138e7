"""What keeps a process on a CPU small."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

KERNELS = "64"
"""Compiled kernels that oneDNN keeps, one for each shape it meets; its own default is 1024."""


def bound_kernel_cache() -> None:
    """Let oneDNN keep few kernels, unless ``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` says how many.

    Texts of any length give batches of any shape, and a kernel with its buffers is kept for each:
    hundreds of megabytes in the end. Our commands call it before their first forward, which is when
    oneDNN reads the variable; a program of your own can, too.

    Example:
        >>> bound_kernel_cache()
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS)


def give_back_memory() -> None:
    """Give freed blocks back to the system (glibc), which keeps those that no later batch fits.

    Batches of any shape leave holes of any size: a training run grew to several times what it uses.
    A call takes some milliseconds; elsewhere than on glibc it does nothing.

    Example:
        >>> give_back_memory()
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
