"""Training with the backbone's layers compiled, each by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from st_jv5.adapters import router_of

Backend = str | Callable[..., Any]

SETTINGS: dict[str, Any] = {
    # A layer has a variant with and without gradients, a mask and an input that learns, for one row
    # and for many, and for each adapter. Past the limit it would run uncompiled.
    "recompile_limit": 64,
    # Dropout and LoRA's scaling are numbers of the code, not inputs of it.
    "specialize_float": True,
    # DDP averages gradients by hooks on the weights; layers need not be split for it.
    "optimize_ddp": False,
}
"""Settings of the compiler while it may be called."""


@contextmanager
def compiled_layers(
    model: nn.Module, backend: Backend | None = None, mode: str | None = None
) -> Iterator[None]:
    """Compile the layers of a model's backbone while the block runs.

    Each layer is compiled in place, for any number of rows and tokens, and all layers share the
    compiled code. Weights keep their names, copies and saved models do not change, and after the
    block the layers are as before. Encoding and evaluation run the layers uncompiled. The first
    steps wait for the compiler.

    Args:
        model: An st_jv5 model.
        backend: Backend of ``torch.compile``, by name or as a function; None is torch's default.
        mode: Mode of ``torch.compile``.

    Raises:
        ValueError: The backbone has no list of layers.

    Example:
        >>> with compiled_layers(student):
        ...     sum(loss(features, labels).values()).backward()
    """
    backbone = router_of(model).model
    layers = list(layers_of(backbone))
    if not layers:
        raise ValueError(f"{type(backbone).__name__} has no list of layers to compile")
    for layer in layers:
        layer._compiled_call_impl = _compiled(layer, backend, mode)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated layers: what stands in a list of modules of one class, the outermost lists."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len({type(one) for one in child}) == 1:
            yield from child
        else:
            yield from layers_of(child)


def _compiled(layer: nn.Module, backend: Backend | None, mode: str | None) -> Callable[..., Any]:
    """A layer's call, with the compiler's settings set in the thread that calls.

    They are a thread's own from torch 2.12 on (pytorch issue 186537), and the backward pass runs
    chunks in another thread. A layer sets them, and not the backbone, whose ``forward``
    sentence-transformers calls without the module's ``__call__``.
    """
    chosen: dict[str, Any] = {"backend": backend} if backend else {}
    run = torch.compile(layer._call_impl, dynamic=True, mode=mode, **chosen)

    def call(*args: Any, **kwargs: Any) -> Any:
        if layer.training and not torch.is_inference_mode_enabled():
            with torch._dynamo.config.patch(**SETTINGS):
                return run(*args, **kwargs)
        return layer._call_impl(*args, **kwargs)

    return call
