"""A LoRA layer that each thread can run with another adapter, merged ones included."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn

from st_jv5.task_table import Blend


@dataclass(frozen=True)
class Route:
    """What one forward sees of the adapters; nothing is the bare backbone."""

    adapter: str | Blend | None = None
    merged: Mapping[nn.Module, Tensor] | None = None
    """Layer -> its weight with the adapter folded in."""
    runs: tuple[tuple[str | Blend | None, int], ...] = ()
    """A mixed batch: adapter and number of rows, one after the other."""


class _Active(threading.local):
    """A value for each thread. Unlike a context variable it can be read in a compiled layer, which
    would take an attribute of the class for the thread's."""

    def __init__(self) -> None:
        self.route = Route()


active = _Active()
"""``active.route`` is the route of the forward that is running in this thread."""


@contextmanager
def routed(route: Route) -> Iterator[None]:
    """Run the backbone with these adapters inside the block, in this thread alone."""
    before = active.route
    active.route = route
    try:
        yield
    finally:
        active.route = before


class RoutedLinear(lora.Linear):
    """PEFT's LoRA layer, taking its adapter from the running forward.

    The stock layer takes it from an attribute that every thread shares, and mixes adapters in a
    batch row by row through hooks. Outside a router's forward this layer is the bare backbone's.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        route = active.route
        if route.merged is not None and self in route.merged:
            return nn.functional.linear(x, route.merged[self], self.base_layer.bias)
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if route.runs:
            return self._mixed(x, result, route.runs)
        if not self.parts(route.adapter):
            return result
        return result + self._update(x, route.adapter).to(result.dtype)

    def set_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: PEFT's active adapter is never read here, and to set it takes every adapter."""

    def parts(self, adapter: str | Blend | None) -> list[tuple[str, float]]:
        """The adapters of a route that touch this layer, and what their updates are scaled by."""
        weights: Mapping[str, float] = {adapter: 1} if isinstance(adapter, str) else adapter or {}
        return [(n, weight * self.scaling[n]) for n, weight in weights.items() if n in self.lora_A]

    def _update(self, x: Tensor, adapter: str | Blend | None) -> Tensor:
        (first, *others) = (self._scaled(x, *part) for part in self.parts(adapter))
        return sum(others, start=first)

    def _scaled(self, x: Tensor, name: str, scaling: float) -> Tensor:
        lora_a, lora_b = self.lora_A[name], self.lora_B[name]
        if not torch.is_autocast_enabled(x.device.type):  # which would only cast it back
            x = self._cast_input_dtype(x, lora_a.weight.dtype)
        update: Tensor = lora_b(lora_a(self.lora_dropout[name](x)))
        return update if scaling == 1 else update * scaling

    def _mixed(
        self, x: Tensor, result: Tensor, runs: tuple[tuple[str | Blend | None, int], ...]
    ) -> Tensor:
        result = result.clone()
        begin = 0
        for adapter, count in runs:
            if self.parts(adapter):
                rows = slice(begin, begin + count)
                result[rows] += self._update(x[rows], adapter).to(result.dtype)
            begin += count
        return result
