"""What keeps a CPU process small."""

from __future__ import annotations

import os
import sys

import psutil
import pytest

from st_jv5.cpu import KERNELS, bound_kernel_cache, give_back_memory

NAME = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_freed_blocks_below_a_used_one_go_back_to_the_system():
    blocks = [bytearray(100_000) for _ in range(3000)]
    last = blocks.pop()
    del blocks
    before = psutil.Process().memory_info().rss
    give_back_memory()
    assert before - psutil.Process().memory_info().rss > 150_000_000
    assert len(last) == 100_000


def test_the_kernel_cache_is_bounded_unless_the_user_says_how(monkeypatch):
    monkeypatch.delenv(NAME, raising=False)
    bound_kernel_cache()
    assert os.environ[NAME] == KERNELS
    monkeypatch.setenv(NAME, "7")
    bound_kernel_cache()
    assert os.environ[NAME] == "7"
