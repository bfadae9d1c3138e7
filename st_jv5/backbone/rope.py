"""RoPE's theta: one value for each phase of training, and one for use.

The paper trains at a lower theta than it serves at (1M and 3.5M for small), so that positions
beyond the training length get angles that training has seen. transformers 5 keeps ``rope_theta``
inside ``rope_parameters`` and drops the top-level key when it saves; other engines read the
top-level key. Where the two disagree transformers silently takes the inner one, so we refuse such a
folder.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from st_jv5.files import read_json, write_json
from st_jv5.task_table import BASE

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def theta_of(config: Any) -> float | None:
    """Theta of a loaded transformers config; None for a backbone without RoPE."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return parameters.get("rope_theta") or getattr(config, "rope_theta", None)


def train_at(model: SentenceTransformer, theta: float, task: str = BASE) -> None:
    """Set RoPE's theta for training ``task``, and record it in the model.

    Args:
        model: An st_jv5 model with a rotary backbone.
        theta: RoPE's base, above 1; with a larger one, positions rotate more slowly.
        task: An adapter, or ``"base"``; the model's ``theta_train`` records one theta for each.

    Raises:
        ValueError: The backbone has learned positions, or several thetas.

    Example:
        >>> train_at(rotary_student, 250_000.0)
        >>> rotary_student[0].theta_train
        {'base': 250000.0}
    """
    _turn_with(model, theta)
    model[0].theta_train[task] = float(theta)


def serve_at(model: SentenceTransformer, theta: float) -> None:
    """Set RoPE's theta for the use of a model, in every task; it is saved with the model.

    Raises as :func:`train_at`.

    Example:
        >>> serve_at(rotary_student, 1_000_000.0)
        >>> rotary_student[0].theta_serve
        1000000.0
    """
    _turn_with(model, theta)


def check_rotary(config: Any) -> None:
    """Raise if a backbone has no theta to set."""
    if theta_of(config) is not None:
        return
    most = getattr(config, "max_position_embeddings", None)
    if getattr(config, "rope_parameters", None):
        raise ValueError(
            f"{config.model_type} has a theta for each kind of layer: {config.rope_parameters}; "
            f"only one theta for all layers can be set (Qwen3, EuroBERT)"
        )
    raise ValueError(
        f"{config.model_type} has no RoPE but {most} learned positions: there is no theta to set, "
        f"and it reads no text beyond them; leave theta out, or take a rotary base (Qwen3, "
        f"EuroBERT)"
    )


def _turn_with(model: SentenceTransformer, theta: float) -> None:
    router: Any = model[0]
    config = router.config
    check_rotary(config)
    if not 1 < theta < math.inf:
        raise ValueError(f"theta must lie above 1, not {theta}")
    config.rope_parameters["rope_theta"] = float(theta)
    for module in router.model.modules():
        if "inv_freq" in dict(module.named_buffers(recurse=False)):
            fresh: Any = type(module)(config=config)
            with torch.inference_mode(False), torch.no_grad():
                for name, buffer in fresh.named_buffers():
                    module.get_buffer(name).copy_(buffer)


def check_both_keys(config_path: str | Path) -> None:
    """Raise if ``config.json`` names two different thetas."""
    config = read_json(config_path)
    inner = (config.get("rope_parameters") or {}).get("rope_theta")
    outer = config.get("rope_theta")
    if inner is not None and outer is not None and float(inner) != float(outer):
        raise ValueError(
            f"{config_path} names two thetas: rope_theta {outer} and rope_parameters.rope_theta "
            f"{inner}; set both to the one the model was trained for"
        )


def write_both_keys(config_path: str | Path) -> None:
    """Repeat ``rope_parameters.rope_theta`` at the top level of a saved ``config.json``."""
    config = read_json(config_path)
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None and config.get("rope_theta") != theta:
        write_json(config_path, {**config, "rope_theta": theta})
