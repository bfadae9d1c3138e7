"""What keeps a CPU process small, and its training fast."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
import torch
from transformers import BertConfig, BertModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from st_jv5.machine.cpu import (
    KERNEL_CACHES,
    KERNELS,
    attention_in_float32,
    bound_kernel_cache,
    give_back_memory,
)
from st_jv5.recipe.context import native_bfloat16


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_freed_blocks_below_a_used_one_go_back_to_the_system():
    blocks = [bytearray(100_000) for _ in range(3000)]
    last = blocks.pop()
    del blocks
    before = psutil.Process().memory_info().rss
    give_back_memory()
    assert before - psutil.Process().memory_info().rss > 150_000_000
    assert len(last) == 100_000


@pytest.mark.parametrize("name", KERNEL_CACHES)
def test_the_kernel_cache_is_bounded_unless_the_user_says_how(monkeypatch, name):
    for one in KERNEL_CACHES:
        monkeypatch.delenv(one, raising=False)
    bound_kernel_cache()
    assert os.environ[name] == KERNELS
    monkeypatch.setenv(name, "7")
    bound_kernel_cache()
    assert os.environ[name] == "7"


MANY_SHAPES = """
import psutil, torch
from st_jv5.machine.cpu import bound_kernel_cache, give_back_memory
bound_kernel_cache()
weight = torch.nn.Parameter(torch.randn(384, 384))
seen = []
for rows in range(100, 180):
    with torch.autocast("cpu", torch.bfloat16):
        torch.nn.functional.linear(torch.randn(rows, 384), weight).float().sum().backward()
    give_back_memory()
    seen.append(psutil.Process().memory_info().rss)
print((seen[-1] - seen[20]) / 2**20)
"""


@pytest.mark.skipif(not native_bfloat16(), reason="oneDNN multiplies bfloat16 where there is some")
def test_kernels_of_many_shapes_do_not_pile_up():
    command = [sys.executable, "-c", MANY_SHAPES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 10  # 79 with both caches as they are by themselves


def test_attention_trains_in_float32_and_reads_in_bfloat16(monkeypatch):
    stock, seen = ALL_ATTENTION_FUNCTIONS["sdpa"], []

    def spy(module, query, *others, **kwargs):
        seen.append(query.dtype)
        return stock(module, query, *others, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", spy)
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    ).eval()
    weight = model.encoder.layer[0].attention.self.query.weight
    inputs = {
        "input_ids": torch.randint(5, 50, (3, 7)),
        "attention_mask": torch.ones(3, 7).tril(4),
    }

    def gradient():
        weight.grad = None
        model(**inputs).last_hidden_state.square()[:, 0, ::3].sum().backward()
        return weight.grad.flatten()

    whole = gradient()
    with torch.autocast("cpu", torch.bfloat16):
        with attention_in_float32():
            trained = gradient()
            with torch.no_grad():
                model(**inputs)
        gradient()
    assert seen == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
    assert torch.cosine_similarity(whole, trained, dim=0) > 0.99
