"""What keeps training on a GPU right."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_inside: list[None] = []
"""One entry for each block that is running, in any thread."""
_before: list[bool] = []


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Run attention by any of torch's kernels but cuDNN's.

    On Hopper GPUs torch from 2.11 on takes cuDNN's kernel where there is a padding mask, and its
    backward pass gives wrong gradients in bfloat16 and float16: first large ones, then NaN
    (pytorch issue 196678; notes/log.md has what it did to a student). The switch is the whole
    process's; what another thread encodes meanwhile has the same vectors from another kernel.

    Example:
        >>> with without_cudnn_attention():
        ...     torch.backends.cuda.cudnn_sdp_enabled()
        False
    """
    with _lock:
        if not _inside:
            _before.append(torch.backends.cuda.cudnn_sdp_enabled())
            torch.backends.cuda.enable_cudnn_sdp(False)
        _inside.append(None)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if not _inside:  # the last thread to leave
                torch.backends.cuda.enable_cudnn_sdp(_before.pop())
