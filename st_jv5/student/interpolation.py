"""Weights between two bases: that from which training began, and that with which it ended."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_jv5.adapters import router_of, tasks
from st_jv5.modules import AdapterRouter


def interpolate(
    start: SentenceTransformer | str | Path, end: SentenceTransformer | str | Path, weight: float
) -> SentenceTransformer:
    """Interpolate between the model that training began with and the one it ended with.

    Each tensor is ``start + weight * (end - start)``. Distilling on little text makes a model
    better on text like it and worse on other text; a base in between keeps most of both strengths
    (Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv:2109.01903).

    Args:
        start: Model or folder that training began with; it may be a stock model.
        end: An st_jv5 model or its folder, of the same backbone, without adapters. Everything but
            the weights comes from it.
        weight: 0 is the start, 1 the end.

    Returns:
        A model like ``end``, without a projection, since ``end``'s projection fits only the vectors
        of ``end`` (:func:`~st_jv5.projection.fit_projection` fits a new one).

    Raises:
        ValueError: The weight is outside 0..1, ``end`` has adapters, or the two differ in their
            tensors, tokens or pooling.

    Example:
        >>> between = interpolate(new_student(teacher_folder), new_student(teacher_folder), 0.5)
        >>> tasks(between)
        []
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must lie in 0..1 (0 is the start, 1 the end), not {weight}")
    start, end = (
        one if isinstance(one, SentenceTransformer) else SentenceTransformer(str(one))
        for one in (start, end)
    )
    router = router_of(end)
    for side, model in (("start", start), ("end", end)):
        if isinstance(model[0], AdapterRouter) and model[0].tasks:
            raise ValueError(
                f"{side} has the adapters {', '.join(tasks(model))}, which stand on its weights; "
                f"interpolate the base before adapters are trained"
            )
    before, after = _weights(start), router.base_state_dict()
    if odd := sorted(set(before) ^ set(after)):
        raise ValueError(f"start and end differ in {len(odd)} tensors, such as {odd[0]}")
    for name, tensor in after.items():
        if tensor.shape != before[name].shape:
            raise ValueError(
                f"{name} is {tuple(before[name].shape)} in start, {tuple(tensor.shape)} in end"
            )
    if start.tokenizer.get_vocab() != end.tokenizer.get_vocab():
        raise ValueError("start and end have different tokens")
    if (start_pooling := _pooling(start)) != (end_pooling := _pooling(end)):
        raise ValueError(f"start pools by {start_pooling}, end by {end_pooling}")
    projection, router.projection = router.projection, None
    try:
        between = deepcopy(end)
    finally:
        router.projection = projection
    with torch.no_grad():
        for name, tensor in between[0].base_state_dict().items():
            if tensor.is_floating_point():
                first = before[name].to(tensor.device, torch.float32)
                tensor.copy_(torch.lerp(first, tensor.float(), weight))
    return between


def _weights(model: SentenceTransformer) -> dict[str, Tensor]:
    if isinstance(model[0], AdapterRouter):
        return model[0].base_state_dict()
    backbone = model.transformers_model
    if backbone is None:
        raise ValueError(f"{type(model[0]).__name__} has no transformers backbone")
    weights: dict[str, Tensor] = backbone.state_dict()
    return weights


def _pooling(model: SentenceTransformer) -> str:
    modes = [str(mode) for mode in (getattr(one, "pooling_mode", None) for one in model) if mode]
    return ", ".join(modes) or "no module"
