"""What keeps a GPU's attention right, and fast."""

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
    backward pass gives NaN for some lengths in bfloat16 and float16 (pytorch issue 196678; not met
    in our own runs, see notes/log.md). Where each batch has a new shape, as texts come, it took two
    thirds of a batch's time on an H200. The switch is the whole process's: another thread's
    forwards take another kernel meanwhile.

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
