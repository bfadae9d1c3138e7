"""A LoRA layer that each thread can run with another adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from peft.tuners import lora
from torch import Tensor

active_adapter: ContextVar[str | None] = ContextVar("st_jv5_active_adapter", default=None)
"""The adapter of the forward that is running in this thread; None is the bare backbone."""


@contextmanager
def routed(adapter: str | None) -> Iterator[None]:
    """Run the backbone with ``adapter`` inside the block, in this thread alone."""
    token = active_adapter.set(adapter)
    try:
        yield
    finally:
        active_adapter.reset(token)


class RoutedLinear(lora.Linear):
    """PEFT's LoRA layer, taking its adapter from the running forward.

    The stock layer takes it from an attribute that every thread shares. Outside a router's forward
    this layer is the bare backbone's.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self.base_layer(x, *args, **kwargs)
        name = active_adapter.get()
        if name not in self.lora_A:
            return result
        lora_a, lora_b = self.lora_A[name], self.lora_B[name]
        x = self._cast_input_dtype(x, lora_a.weight.dtype)
        update = lora_b(lora_a(self.lora_dropout[name](x))) * self.scaling[name]
        return result + update.to(result.dtype)
