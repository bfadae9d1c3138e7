"""How fast this machine is at what a plan counts: steps as training makes them, under a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from statistics import median

import numpy as np
import psutil
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from transformers import PreTrainedConfig

from st_jv5.batching import default_budget
from st_jv5.machine.cpu import attention_in_float32, give_back_memory
from st_jv5.modules.routed_linear import Route, routed
from st_jv5.recipe.planning.cost import ADAPTER, Array, Chunk, Costs, backbone, batch, with_layers
from st_jv5.recipe.train import peak_memory_mib, reset_peak_memory
from st_jv5.trainer.adapter_trainer import GIVE_BACK_STEPS

LENGTHS = (16, 64, 256)
"""Tokens of a text between which speed is interpolated."""
KINDS = {
    "base": (0, 0.0, True),
    "adapter": (32, 0.0, True),
    "dropout": (32, 0.1, True),
    "reading": (0, 0.0, False),
}
"""Each kind of the student's work that is measured: rank, LoRA dropout, whether it is trained."""
MOST_PARAMETERS = 200_000_000
"""A larger backbone is measured on its first layers."""


@dataclass(frozen=True)
class Speed:
    """How long a chunk of rows takes in one kind of work."""

    chunk: float
    """Seconds of any chunk, however small: kernels for its shape, weights cast, gradients added."""
    at: Array
    """Seconds of an operation beyond that, at each of LENGTHS."""

    def seconds(self, flops: Array, tokens: Array) -> Array:
        """Seconds of chunks ``(n,)``, by their operations and the tokens of their texts."""
        return self.chunk + flops * (_between(tokens) @ self.at)


@dataclass(frozen=True)
class Machine:
    """What was measured."""

    speeds: Mapping[str, Speed]
    """Forward and backward of the ``base``, of an ``adapter`` that alone is trained, and of one
    with ``dropout`` before each LoRA, drawn on one thread of a CPU; forward alone of the base
    (``reading``) and of the ``teacher``."""
    update: float
    """Seconds of checking, clipping and AdamW per parameter."""
    process: float
    """Bytes of this process before it loads a model; 0 on a GPU."""
    holes: float
    """Bytes that kernels and the allocator hold beyond weights, gradients and activations; 0 on a
    GPU."""


@dataclass(frozen=True)
class _Work:
    """A kind of work to measure."""

    config: PreTrainedConfig
    steps: Sequence[Sequence[Chunk]]
    rank: int = 0
    dropout: float = 0.0
    trained: bool = True


def probe(
    student: PreTrainedConfig,
    teacher: PreTrainedConfig | None,
    bfloat16: bool,
    steps: Mapping[str, Sequence[Sequence[Chunk]]],
    seconds: float = 10,
) -> Machine:
    """Measure.

    Args:
        student: Its architecture, also where it is not on this disk.
        teacher: None: no local teacher.
        bfloat16: Whether forwards run in it.
        steps: Kind (:data:`KINDS`) -> steps to run.
        seconds: For each kind of work; loading comes on top.
    """
    before = psutil.Process().memory_info().rss
    device = "cuda" if torch.cuda.is_available() else "cpu"
    works = {name: _Work(student, own, *KINDS[name]) for name, own in steps.items()}
    if teacher is not None:
        most = getattr(teacher, "max_position_embeddings", None) or LENGTHS[-1]
        lengths = [min(length, most) for length in LENGTHS]
        chunks = [
            [(max(1, default_budget(device) // n // part), n)] for part in (1, 4) for n in lengths
        ]
        works["teacher"] = _Work(teacher, chunks, trained=False)
    speeds: dict[str, Speed] = {}
    holes = 0.0
    for name, work in works.items():
        speeds[name], own = _measure(work, bfloat16, device, seconds)
        if work.trained:
            holes = max(holes, own)
    return Machine(
        speeds=speeds,
        update=_update_seconds(device, seconds / 10),
        process=before if device == "cpu" else 0,
        holes=holes,
    )


def _measure(work: _Work, bfloat16: bool, device: str, seconds: float) -> tuple[Speed, float]:
    """Measure a kind of work: all chunks of a step forward, then backward together, repeatedly."""
    config = _shallow(work.config)
    costs = Costs(config, bfloat16)
    model = backbone(config, work.rank, work.dropout).to(device).train(work.trained)
    costs.kept([(1, 1)], work.rank, dropout=work.dropout)  # counted now: it takes memory of its own
    table: list[Array] = []
    taken: list[float] = []
    before = psutil.Process().memory_info().rss
    reset_peak_memory()
    most, started = 0.0, time.perf_counter()
    for number, chunks in enumerate(cycle(work.steps)):
        if len(taken) > 1 and time.perf_counter() - started > seconds:
            break
        inputs = [
            {k: v.to(device) for k, v in batch(config, rows, tokens).items()}
            for rows, tokens in chunks
        ]
        spent = elapsed(partial(_step, model, inputs, work, device, bfloat16))
        rows, tokens = np.array(chunks).T
        cost = costs.forward(tokens, work.rank, work.trained, dropout=work.dropout)
        flops = rows * (cost.flops + cost.backward_flops)
        if work.trained:
            most = max(most, costs.kept(chunks, work.rank, dropout=work.dropout))
        if number:  # the first is slower
            table.append(np.array([len(chunks), *(flops @ _between(tokens))]))
            taken.append(spent)
        if number % GIVE_BACK_STEPS == 0:
            give_back_memory()
    peak = peak_memory_mib() * 2**20
    gradients = 4 * costs.weights(work.rank).trained if work.trained else 0
    holes = max(0.0, peak - before - gradients - most) if device == "cpu" else 0.0
    chunk, at = fit(np.array(table), np.array(taken))
    layers = work.config.num_hidden_layers / config.num_hidden_layers
    return Speed(chunk * layers, at), holes


def fit(table: Array, seconds: Array) -> tuple[float, Array]:
    """Seconds of a chunk, and of an operation at each of LENGTHS: least squares, relative to each
    step, none below 0.

    Args:
        table: ``(steps, 1 + len(LENGTHS))``: chunks, and operations near each length.
        seconds: ``(steps,)``.
    """
    relative = table / seconds[:, None]
    scale = relative.max(axis=0).clip(min=1e-30)  # operations are many, chunks few
    chunk, *at = nnls(relative / scale, np.ones(len(seconds)))[0] / scale
    known = np.flatnonzero(at)
    if len(known):  # a length that no chunk was near goes as the next
        at = np.interp(np.arange(len(at)), known, np.array(at)[known])
    return float(chunk), np.array(at)


def _step(
    model: nn.Module, batches: list[dict[str, Tensor]], work: _Work, device: str, bfloat16: bool
) -> None:
    model.zero_grad()
    found = []
    for inputs in batches:
        with (
            routed(Route(ADAPTER if work.rank else None)),
            attention_in_float32(),
            torch.autocast(device, torch.bfloat16, enabled=bfloat16),
            torch.set_grad_enabled(work.trained),
        ):
            found.append(model(**inputs).last_hidden_state[:, -1])
    if work.trained:
        torch.cat(found).float().sum().backward()


def _between(tokens: Array) -> Array:
    """Each length's share of the LENGTHS around it, by its logarithm: ``(n, len(LENGTHS))``."""
    known = np.log(LENGTHS)
    return np.stack([np.interp(np.log(tokens), known, row) for row in np.eye(len(known))], axis=1)


def elapsed(work: Callable[[], None]) -> float:
    """Seconds that a piece of work takes."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def timed(work: Callable[[], None], seconds: float) -> float:
    """Median seconds of a piece of work, repeated for ``seconds`` in all after a first time."""
    work()
    taken = [elapsed(work)]
    while sum(taken) < seconds:
        taken.append(elapsed(work))
    return median(taken)


def _shallow(config: PreTrainedConfig) -> PreTrainedConfig:
    large = Costs(config, bfloat16=False).weights().all > MOST_PARAMETERS
    layers = config.num_hidden_layers
    return with_layers(config, min(layers, 2) if large else layers)


def _update_seconds(device: str, seconds: float, count: int = 16_000_000) -> float:
    weights = [torch.nn.Parameter(torch.randn(count // 8, device=device)) for _ in range(8)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=True)

    def update() -> None:
        get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        clip_grad_norm_(weights, 1.0)
        optimizer.step()

    return timed(update, seconds) / count
