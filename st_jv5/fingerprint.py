"""One name for all that a model's vectors come from."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sentence_transformers import SentenceTransformer


def fingerprint(model: SentenceTransformer) -> str:
    """Hash of all weights and of how they are wired: 16 hexadecimal digits.

    Example:
        >>> len(fingerprint(student))
        16
    """
    digest = hashlib.sha256(_wiring(model).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.float().numpy().data)
    return digest.hexdigest()[:16]


def _wiring(model: SentenceTransformer) -> str:
    """Modules and their settings, backbone and tokenizer: pooling, EOS, theta, words."""
    wiring: list[Any] = [
        (type(module).__name__, getattr(module, "get_config_dict", dict)()) for module in model
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
