"""How fast this machine is at what a plan counts: real forwards and backwards, half a minute."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import psutil
import torch
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedConfig

from st_jv5.batching import default_budget
from st_jv5.cpu import attention_in_float32
from st_jv5.modules.routed_linear import Route, routed
from training.cost import ADAPTER, Costs, backbone, batch, with_layers
from training.train import peak_memory_mib, reset_peak_memory

LENGTHS = (16, 64, 256)
"""Tokens of a text at which it measures."""
MOST_PARAMETERS = 200_000_000
"""A larger backbone is measured on its first layers."""


@dataclass(frozen=True)
class Speed:
    """Operations per second of one kind of work, by the texts' length."""

    at: dict[int, float]
    """Tokens -> operations per second."""

    def seconds(self, flops: float, tokens: float) -> float:
        """How long so many operations take on texts of so many tokens."""
        known = sorted(self.at)
        rates = [self.at[length] for length in known]
        return flops / float(np.interp(math.log(max(tokens, 1)), np.log(known), rates))


@dataclass(frozen=True)
class Machine:
    """What was measured."""

    base: Speed
    """Forward and backward of the whole backbone."""
    adapter: Speed
    """The same with an adapter that alone is trained, without dropout."""
    dropout: Speed
    """The same with dropout before each LoRA, which a CPU draws on one thread."""
    teacher: Speed
    """The teacher's forward."""
    update: float
    """Seconds of clipping and AdamW per parameter."""
    process: float
    """Bytes of this process before it loads a model; 0 on a GPU."""
    holes: float
    """Bytes that kernels and the allocator hold beyond weights, gradients and activations, in steps
    of many shapes; 0 on a GPU."""


def probe(
    student: PreTrainedConfig, teacher: PreTrainedConfig | None, bfloat16: bool, seconds: float = 20
) -> Machine:
    """Measure; ``seconds`` are shared among the kinds of work and lengths.

    Args:
        student: Its architecture, also where it is not on this disk.
        teacher: None: no local teacher.
        bfloat16: Whether forwards run in it.
        seconds: For speed; half as many again for memory. Loading comes on top.
    """
    before = psutil.Process().memory_info().rss
    share = seconds / (4 * len(LENGTHS) + 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def speed(config: PreTrainedConfig, rank: int, trained: bool, dropout: float = 0.0) -> Speed:
        config = _shallow(config)
        costs = Costs(config, bfloat16)
        model = backbone(config, rank, dropout).to(device).train(trained)
        most = getattr(config, "max_position_embeddings", None) or math.inf
        found = {}
        for tokens in (length for length in LENGTHS if length <= most):
            rows = max(1, default_budget(device) // tokens)
            inputs = {k: v.to(device) for k, v in batch(config, rows, tokens).items()}

            def step(inputs: dict[str, torch.Tensor] = inputs) -> None:
                with (
                    routed(Route(ADAPTER if rank else None)),
                    attention_in_float32(),
                    torch.autocast(device, torch.bfloat16, enabled=bfloat16),
                    torch.set_grad_enabled(trained),
                ):
                    vectors = model(**inputs).last_hidden_state[:, -1]
                if trained:
                    vectors.float().sum().backward()

            cost = costs.forward(tokens, rank, trained, dropout=dropout)
            work = float(cost.flops + cost.backward_flops)
            found[tokens] = rows * work / timed(step, share)
        return Speed(found)

    holes = _holes(student, bfloat16, seconds / 2) if device == "cpu" else 0
    base = speed(student, 0, trained=True)
    return Machine(
        base=base,
        adapter=speed(student, 32, trained=True),
        dropout=speed(student, 32, trained=True, dropout=0.1),
        teacher=speed(teacher, 0, trained=False) if teacher is not None else base,
        update=_update_seconds(device, share),
        process=before if device == "cpu" else 0,
        holes=holes,
    )


def timed(work: Callable[[], None], seconds: float) -> float:
    """Median seconds of a piece of work, repeated for ``seconds`` in all after a first time."""

    def once() -> float:
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    once()
    taken = [once()]
    while sum(taken) < seconds:
        taken.append(once())
    return median(taken)


def _holes(config: PreTrainedConfig, bfloat16: bool, seconds: float) -> float:
    """Steps as stage 1 has them: some chunks of any width, forward, then backward."""
    config = _shallow(config)
    model, costs = backbone(config).train(), Costs(config, bfloat16)
    costs.forward(1)  # counted now: it takes memory of its own
    widths, draw = range(8, 160), random.Random(0)
    before = psutil.Process().memory_info().rss
    reset_peak_memory()
    kept, started = 0.0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        rows = [(default_budget("cpu") // width, width) for width in draw.choices(widths, k=3)]
        kept = max(kept, sum(n * float(costs.forward(width).activations) for n, width in rows))
        with attention_in_float32(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            found = [model(**batch(config, *one)).last_hidden_state[:, -1] for one in rows]
        torch.cat(found).float().sum().backward()
    peak = peak_memory_mib() * 2**20
    gradients = 4 * costs.weights().all
    return max(0.0, peak - before - gradients - kept)


def _shallow(config: PreTrainedConfig) -> PreTrainedConfig:
    large = Costs(config, bfloat16=False).weights().all > MOST_PARAMETERS
    layers = config.num_hidden_layers
    return with_layers(config, min(layers, 2) if large else layers)


def _update_seconds(device: str, seconds: float, count: int = 4_000_000) -> float:
    weights = [torch.nn.Parameter(torch.randn(count // 8, device=device)) for _ in range(8)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=True)

    def update() -> None:
        clip_grad_norm_(weights, 1.0)
        optimizer.step()

    return timed(update, seconds) / count
