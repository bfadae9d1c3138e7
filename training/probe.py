"""How fast this machine is at what a plan counts: twenty seconds of real forwards and backwards."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import psutil
import torch
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedConfig

from st_jv5.batching import default_budget
from st_jv5.cpu import attention_in_float32
from st_jv5.modules.routed_linear import Route, routed
from training.cost import ADAPTER, Costs, backbone, batch, with_layers

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
        nearest = min(self.at, key=lambda known: abs(math.log(known / max(tokens, 1))))
        return flops / self.at[nearest]


@dataclass(frozen=True)
class Machine:
    """What was measured."""

    base: Speed
    """Forward and backward of the whole backbone."""
    adapter: Speed
    """The same with an adapter that alone is trained."""
    teacher: Speed
    """The teacher's forward."""
    update: float
    """Seconds of clipping and AdamW per parameter."""
    process: float
    """Bytes of this process without model and data; 0 on a GPU."""


def probe(
    student: PreTrainedConfig, teacher: PreTrainedConfig | None, bfloat16: bool, seconds: float = 20
) -> Machine:
    """Measure; ``seconds`` are shared among the kinds of work and lengths.

    Args:
        student: Its architecture, also where it is not on this disk.
        teacher: None: no local teacher.
        bfloat16: Whether forwards run in it.
        seconds: In all, loading apart.
    """
    before = psutil.Process().memory_info().rss
    share = seconds / (3 * len(LENGTHS) + 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def speed(config: PreTrainedConfig, rank: int, trained: bool) -> Speed:
        config = _shallow(config)
        costs = Costs(config, bfloat16)
        model = backbone(config, rank).to(device).train(trained)
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

            cost = costs.forward(tokens, rank, trained)
            found[tokens] = rows * (cost.flops + cost.backward_flops) / timed(step, share)
        return Speed(found)

    base = speed(student, 0, trained=True)
    return Machine(
        base=base,
        adapter=speed(student, 32, trained=True),
        teacher=speed(teacher, 0, trained=False) if teacher is not None else base,
        update=_update_seconds(device, share),
        process=before if device == "cpu" else 0,
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
