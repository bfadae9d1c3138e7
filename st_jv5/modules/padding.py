"""What is known of a batch's padding, and the attention mask that it takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel

Padding = Literal["none", "right", "left"]
"""Where the shorter texts of a batch are padded; none: all are as long."""

TAKE_WHOLE_MASKS = ("bert", "eurobert")
"""Encoders whose layers all take one mask ``(n, 1, tokens, tokens)``, and that use no other."""

_known: ContextVar[Padding | None] = ContextVar("st_jv5_known_padding", default=None)


@contextmanager
def known_padding(padding: Padding) -> Iterator[None]:
    """Tell the forwards inside the block, in this thread alone, how their batch is padded.

    Who made the batch knows it; transformers would ask the device in every forward, and wait.

    Example:
        >>> with known_padding("none"):
        ...     vectors = student.encode(["a cat"])
    """
    token = _known.set(padding)
    try:
        yield
    finally:
        _known.reset(token)


def mask_for(backbone: PreTrainedModel, mask: Tensor) -> dict[str, Any]:
    """The backbone's ``attention_mask`` where the padding is known: a kwarg, or nothing to change.

    None where no token must be hidden: without padding, and in a causal decoder that is padded on
    the right, whose tokens see nothing behind them. It leaves torch its fastest kernel. Otherwise
    the mask ``(n, 1, tokens, tokens)`` that transformers would make of ``(n, tokens)`` after asking
    the device whether it is needed.

    Args:
        backbone: A model of transformers.
        mask: ``(n, tokens)``, 1 where a token is real.
    """
    padding = _known.get()
    if padding is None or getattr(backbone.config, "_attn_implementation", None) != "sdpa":
        return {}
    # is_causal looks at every module: last.
    if padding == "none" or (padding == "right" and is_causal(backbone)):
        # Where they can be given the masks of their kinds of layers, causal decoders do not ask
        # the device whether several texts stand in one row.
        return {"attention_mask": {"full_attention": None} if _takes_masks(backbone) else None}
    if backbone.config.model_type not in TAKE_WHOLE_MASKS or is_causal(backbone):
        return {}
    tokens = mask.shape[1]
    return {"attention_mask": mask.bool()[:, None, None, :].expand(-1, 1, tokens, tokens)}


def is_causal(backbone: PreTrainedModel) -> bool:
    """Whether each token sees only those before it, in every layer.

    ``config.is_causal = False`` makes an encoder of a decoder, whose layers do not tell.
    """
    told = [m.is_causal for m in backbone.modules() if hasattr(m, "is_causal")]
    return getattr(backbone.config, "is_causal", True) and bool(told) and all(told)


def _takes_masks(backbone: PreTrainedModel) -> bool:
    """Whether ``attention_mask`` may be a dict, kind of layer -> mask, and all are of one kind."""
    kinds = set(getattr(backbone.config, "layer_types", None) or ())
    forward: Any = inspect.unwrap(type(backbone).forward)
    return "causal_mask_mapping" in forward.__code__.co_varnames and kinds == {"full_attention"}
