"""A hash of everything that a model's vectors depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from sentence_transformers import SentenceTransformer


def fingerprint(model: SentenceTransformer, *, heads: bool = False) -> str:
    """Hash of a model's weights, modules and settings: 16 hexadecimal digits.

    A model's heads, which only the mode ``"head"`` uses, are included if ``heads``.

    Example:
        >>> len(fingerprint(student))
        16
    """
    modules = [module for module in model if heads or type(module).__name__ != "Heads"]
    digest = hashlib.sha256(_wiring(model, modules).encode())
    state = {
        f"{index}.{name}": tensor
        for index, module in enumerate(modules)
        for name, tensor in module.state_dict().items()
    }
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.float().numpy().data)
    return digest.hexdigest()[:16]


def _wiring(model: SentenceTransformer, modules: Iterable[Any]) -> str:
    """Modules and their settings, backbone and tokenizer: pooling, EOS, theta, words."""
    wiring: list[Any] = [
        (type(module).__name__, getattr(module, "get_config_dict", dict)()) for module in modules
    ]
    if model.transformers_model is not None:
        config = model.transformers_model.config.to_diff_dict()
        own = ("_name_or_path", "transformers_version", "dtype")
        wiring.append({key: value for key, value in config.items() if key not in own})
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        words = json.loads(backend.to_str())
        # Set anew for every batch.
        wiring.append({k: v for k, v in words.items() if k not in ("truncation", "padding")})
    return json.dumps(wiring, sort_keys=True, default=str)
