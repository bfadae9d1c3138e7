"""The blocks of a transformer."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def transformer_blocks(backbone: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Path and list of a backbone's blocks: the ModuleList of ``num_hidden_layers`` entries."""
    count = backbone.config.num_hidden_layers
    for path, module in backbone.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return path, module
    raise ValueError(f"{type(backbone).__name__} has no list of its {count} blocks")
