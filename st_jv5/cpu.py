"""What keeps a process on a CPU small."""

from __future__ import annotations

import os

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
