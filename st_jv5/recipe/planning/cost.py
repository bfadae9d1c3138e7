"""What one step costs: operations and memory, counted on the architecture itself.

The backbone is built from its config without weights (fake tensors) and run forward and backward as
a phase does, with its adapter, in its precision: torch counts the operations, and the tensors that
autograd keeps are the activations. No weights are downloaded and nothing is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from st_jv5.backbone.blocks import transformer_blocks
from st_jv5.jina import is_jina_v5, stock_config
from st_jv5.machine.cpu import attention_in_float32
from st_jv5.modules.routed_linear import Route, RoutedLinear, routed
from st_jv5.recipe.config import Student, Teacher
from st_jv5.recipe.strict import RecipeError
from st_jv5.student.build import DROPOUTS
from st_jv5.teacher.sources import resolve_model

Array = np.ndarray[Any, Any]
ADAPTER = "adapter"
Chunk = tuple[int, int]
"""Rows of a forward, and the padded tokens of each."""


@dataclass(frozen=True)
class Forward:
    """One forward of a text, or of each of several, and its backward."""

    flops: Array
    """Operations of the forward pass."""
    backward_flops: Array
    """Operations of the backward pass; 0 if nothing is trained."""
    activations: Array
    """Bytes that autograd keeps, weights in lower precision not among them."""


@dataclass(frozen=True)
class Weights:
    """Parameters of a backbone."""

    all: int
    trained: int
    """Trained parameters: all, or those of an adapter."""
    linear: int
    """Parameters that bfloat16 forward passes copy."""


def read_config(spec: Student | Teacher, where: str) -> PreTrainedConfig:
    """The architecture: of the model on this disk, as the recipe describes it, or as the Hub does.

    Of a model on the Hub only ``config.json`` is fetched, a few kilobytes.
    """
    name = spec.name if isinstance(spec, Student) else spec.model
    folder = resolve_model(name)
    if Path(folder).is_dir():
        is_jina = is_jina_v5(folder)
        config = stock_config(folder) if is_jina else AutoConfig.from_pretrained(folder)
    elif spec.config:
        settings = dict(spec.config)
        config = AutoConfig.for_model(str(settings.pop("model_type")), **settings)
    else:
        revision = spec.revision if isinstance(spec, Teacher) else ""
        try:
            config = AutoConfig.from_pretrained(
                folder, revision=revision or None, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise RecipeError(
                f"{where}: the config of {name} cannot be read, neither here nor from the Hub; say "
                f"in {where}.config what it is (model_type, num_hidden_layers, hidden_size, ...)"
            ) from error
    if isinstance(spec, Student) and spec.layers is not None:
        kept = spec.layers if isinstance(spec.layers, int) else len(spec.layers)
        return with_layers(config, kept)
    return config


def with_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The same architecture with so many blocks, and without dropout, as a student is trained."""
    changed = deepcopy(config)
    changed.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        changed.layer_types = (config.layer_types * layers)[:layers]
    for name in DROPOUTS:
        if hasattr(changed, name):
            setattr(changed, name, 0.0)
    return changed


def backbone(config: PreTrainedConfig, rank: int = 0, dropout: float = 0.0) -> Any:
    """A backbone with fresh weights, with an adapter on every linear layer of its blocks."""
    model = AutoModel.from_config(config)
    if rank:
        path, _ = transformer_blocks(model)
        lora = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=[
            name for name, module in model.named_modules()
            if name.startswith(path) and isinstance(module, nn.Linear)
        ])  # fmt: skip
        lora._register_custom_module({nn.Linear: RoutedLinear})
        inject_adapter_in_model(lora, model, adapter_name=ADAPTER)
    return model


@contextmanager
def _as_trained(rank: int, bfloat16: bool) -> Iterator[None]:
    route = routed(Route(ADAPTER if rank else None))
    attention = nullcontext() if torch.cuda.is_available() else attention_in_float32()
    with route, attention, torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        yield


def batch(config: PreTrainedConfig, rows: int, tokens: int) -> dict[str, Tensor]:
    """Inputs of a forward, the first row padded as most batches have some."""
    ids = torch.randint(0, config.vocab_size, (rows, tokens))
    mask = torch.ones_like(ids)
    mask[0, 1:] = 0
    return {"input_ids": ids, "attention_mask": mask}


class Costs:
    """Counts forwards of one architecture; equal ones are counted once in a process."""

    _counts: ClassVar[
        dict[tuple[str, bool], tuple[Callable[..., Any], Callable[..., Weights]]]
    ] = {}

    def __init__(self, config: PreTrainedConfig, bfloat16: bool) -> None:
        self.config, self.bfloat16 = config, bfloat16
        key = config.to_json_string(use_diff=False), bfloat16
        own = cache(self._polynomial), cache(self._weights)
        self.polynomial, self.weights = self._counts.setdefault(key, own)

    def _weights(self, rank: int = 0) -> Weights:
        with torch.device("meta"):
            model = backbone(self.config, rank)
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        lora = sum(size for name, size in sizes.items() if ".lora_" in name)
        linear = sum(m.weight.numel() for m in model.modules() if type(m) is nn.Linear)
        return Weights(sum(sizes.values()), lora or sum(sizes.values()), linear)

    def forward(
        self,
        tokens: float | Array,
        rank: int = 0,
        trained: bool = True,
        checkpointing: bool = False,
        dropout: float = 0.0,
    ) -> Forward:
        """Count the forward pass of one text, or of each of several.

        Args:
            tokens: Tokens of the text, or ``(n,)`` of each text; the result has this shape.
            rank: Rank of the trained adapter; 0: the whole backbone is trained, or nothing.
            trained: Whether there is a backward pass.
            checkpointing: Whether blocks are run again in it.
            dropout: Before each LoRA.
        """
        linear, square = self.polynomial(rank, trained, checkpointing, dropout)
        length = np.asarray(tokens, dtype=float)
        return Forward(*(a * length + b * length**2 for a, b in zip(linear, square, strict=True)))

    def kept(
        self,
        chunks: Sequence[Chunk],
        rank: int = 0,
        checkpointing: bool = False,
        dropout: float = 0.0,
    ) -> float:
        """Bytes that autograd keeps of these chunks; the weights are cast for each chunk."""
        rows, tokens = np.array(chunks).T
        activations = self.forward(tokens, rank, True, checkpointing, dropout).activations
        copies = 2 * self.weights(rank).linear if self.bfloat16 else 0
        return float(rows @ activations + len(rows) * copies)

    def _polynomial(
        self, rank: int, trained: bool, checkpointing: bool, dropout: float
    ) -> tuple[Sequence[float], Sequence[float]]:
        """Linear and quadratic part: two lengths say all, for attention alone is quadratic."""

        def count(rows: int, tokens: int) -> Array:
            # Blocks are alike: one and two of them say what any number costs.
            one, two = (
                np.array(self._count(layers, rows, tokens, rank, trained, checkpointing, dropout))
                for layers in (1, 2)
            )
            return one + (self.config.num_hidden_layers - 1) * (two - one)

        short, long = 64, 128
        one = count(1, short)
        # What does not grow with the rows is the weights' own: their copies in lower precision.
        fixed = 2 * one - count(2, short)
        at_short, at_long = one - fixed, count(1, long) - fixed
        square = (at_long / long - at_short / short) / (long - short)
        return at_short / short - square * short, square

    def _count(
        self,
        layers: int,
        rows: int,
        tokens: int,
        rank: int,
        trained: bool,
        checkpointing: bool,
        dropout: float,
    ) -> tuple[float, float, float]:
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
            return tensor

        with torch.device("meta"):
            model = backbone(with_layers(self.config, layers), rank, dropout)
        with FakeTensorMode(), _as_trained(rank, self.bfloat16):
            _make_fake(model)
            model.train(trained)
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
                model.enable_input_require_grads()
            inputs = batch(self.config, rows, tokens)
            with (
                FlopCounterMode(display=False) as forward,
                torch.set_grad_enabled(trained),
                torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            ):
                found = model(**inputs).last_hidden_state[:, -1]
            backward = FlopCounterMode(display=False)
            if trained:
                with backward:
                    found.float().sum().backward()
            own = {p.untyped_storage()._cdata for p in model.parameters()}
        total = sum(size for key, size in kept.items() if key not in own)
        return forward.get_total_flops(), backward.get_total_flops(), total


def _make_fake(model: nn.Module) -> None:
    """Put fake tensors of this machine in the place of those without a device."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = torch.empty(parameter.shape, dtype=parameter.dtype)
            module.register_parameter(name, nn.Parameter(fake, parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype))


def optimizer_bytes(weights: Weights) -> Mapping[str, int]:
    """Weights, gradients and AdamW's two moments, all in float32."""
    return {
        "weights": 4 * weights.all,
        "gradients": 4 * weights.trained,
        "optimizer": 8 * weights.trained,
    }
