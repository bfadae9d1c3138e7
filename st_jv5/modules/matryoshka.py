"""Cut to the first dimensions, then normalise."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch
from sentence_transformers.base.modules import Module
from torch import Tensor

from st_jv5.modules.owner import Owner

logger = logging.getLogger(__name__)


class MatryoshkaTruncate(Module):
    """Cut sentence embeddings to their first ``dim`` dimensions, then L2-normalise.

    The rows have unit length for ``model.encode(texts, dim=d)``, for
    ``SentenceTransformer(path, truncate_dim=d)`` and inside ``model.truncate_embeddings(d)``. Given
    two of them the smaller dim wins. ``model.encode(texts, truncate_dim=d)`` is cut by the host
    after the last module, where no module sees it: its rows are unit only with
    ``normalize_embeddings=True``.

    ``truncate_dim`` concerns ``encode`` alone (which runs in inference mode), as in the host: a
    training or evaluation loss sees the full width and chooses its own dims.

    A dim that the model was not trained for (``matryoshka_dims`` of ``st_jv5.json``) warns once; a
    dim beyond the width is an error.

    Example:
        >>> model.encode(["a cat"], task="clustering", dim=64).shape
        (1, 64)
        >>> SentenceTransformer(saved_folder, truncate_dim=64).encode(["a"], task="base").shape
        (1, 64)
    """

    forward_kwargs: ClassVar[set[str]] = {"dim"}

    def __init__(self) -> None:
        super().__init__()
        self._model = Owner()
        self._warned: set[int] = set()

    def on_model_ready(self, model: Any) -> None:
        self._model = Owner(model)

    def forward(
        self, features: dict[str, Tensor | Any], dim: int | None = None, **kwargs: Any
    ) -> dict[str, Tensor | Any]:
        """Replace ``features["sentence_embedding"]`` ``(n, D)`` by unit rows ``(n, dim or D)``.

        At least float32: a half-precision backbone's rounding would leave lengths beside 1.
        """
        embedding: Tensor = features["sentence_embedding"]
        embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
        asked = [value for value in (dim, self._truncate_dim()) if value is not None]
        if asked:
            embedding = embedding[:, : self._checked(min(asked), embedding.shape[-1])]
        features["sentence_embedding"] = torch.nn.functional.normalize(embedding, dim=-1)
        return features

    def _truncate_dim(self) -> int | None:
        model = self._model() if torch.is_inference_mode_enabled() else None
        return getattr(model, "truncate_dim", None)

    def _checked(self, dim: int, width: int) -> int:
        if not 1 <= dim <= width:
            raise ValueError(f"dim must lie in 1..{width} (the model's width), not {dim}")
        model = self._model()
        trained = getattr(model[0], "matryoshka_dims", ()) if model is not None else ()
        if trained and dim not in (*trained, width) and dim not in self._warned:
            self._warned.add(dim)
            logger.warning("dim %d was not trained; this model has %s", dim, list(trained))
        return dim

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write an empty config: the trained dims live in ``st_jv5.json``."""
        self.save_config(output_path)
