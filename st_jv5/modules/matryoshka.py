"""Cut to the first dimensions, then normalise."""

from __future__ import annotations

import logging
from functools import partial
from numbers import Integral
from typing import Any, ClassVar

import torch
from sentence_transformers.base.modules import Module
from torch import Tensor

from st_jv5.modules.owner import Owner, belong
from st_jv5.modules.rotation import rotation_in

logger = logging.getLogger(__name__)


class MatryoshkaTruncate(Module):
    """Cut sentence embeddings to their first ``dim`` dimensions, then L2-normalise.

    The rows have unit length for ``model.encode(texts, dim=d)``, for ``SentenceTransformer(path,
    truncate_dim=d)``, inside ``model.truncate_embeddings(d)``, in the processes of a pool, too, and
    for ``model.encode(texts, truncate_dim=d)``, which sentence-transformers cuts after the last
    module. If two of these are given, the smaller dim counts.

    As in sentence-transformers, ``truncate_dim`` affects ``encode`` only: losses, in training and
    evaluation, get vectors of full width and cut them at their own dims.

    For a dim that the model was not trained for (``matryoshka_dims`` in ``st_jv5.json``) a warning
    is logged once, unless the model is rotated; a dim above the width is an error.

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
        belong(self, model)
        if hasattr(type(model), "_inference"):  # there is no hook behind encode's own cut
            model._inference = partial(_with_unit_rows, Owner(model))

    def forward(
        self, features: dict[str, Tensor | Any], dim: int | None = None, **kwargs: Any
    ) -> dict[str, Tensor | Any]:
        """Replace ``features["sentence_embedding"]`` ``(n, D)`` by unit rows ``(n, dim or D)``.

        They are in float32 at least: in half precision, rounding would make lengths differ from 1.
        """
        embedding: Tensor = features["sentence_embedding"]
        embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
        width = embedding.shape[-1]
        asked = [value for value in (dim, self._truncate_dim()) if value is not None]
        if asked:
            embedding = embedding[:, : min(self._checked(value, width) for value in asked)]
        features["sentence_embedding"] = torch.nn.functional.normalize(embedding, dim=-1)
        return features

    def _truncate_dim(self) -> int | None:
        model = self._model() if torch.is_inference_mode_enabled() else None
        return getattr(model, "truncate_dim", None)

    def _checked(self, dim: int, width: int) -> int:
        if isinstance(dim, bool) or not isinstance(dim, Integral):
            raise ValueError(f"dim must be an int in 1..{width}, not {dim!r}")
        if not 1 <= dim <= width:
            raise ValueError(f"dim must lie in 1..{width} (the model's width), not {dim}")
        model = self._model()
        trained = getattr(model[0], "matryoshka_dims", ()) if model is not None else ()
        turned = model is not None and rotation_in(model) is not None  # its order is its own
        if trained and not turned and dim not in (*trained, width) and dim not in self._warned:
            self._warned.add(dim)
            logger.warning(
                "dim %d was not trained; this model was trained at %s", dim, list(trained)
            )
        return dim

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write an empty config: the trained dims live in ``st_jv5.json``."""
        self.save_config(output_path)


def _with_unit_rows(
    owner: Owner,
    inputs: list[Any],
    *,
    truncate_dim: int | None = None,
    normalize_embeddings: bool = False,
    **kwargs: Any,
) -> Any:
    """sentence-transformers' loop of ``encode``, which cuts after the last module: then unit rows.

    This is the only way in which a process of a pool learns of the cut.
    """
    model = owner()
    return type(model)._inference(
        model,
        inputs,
        truncate_dim=truncate_dim,
        normalize_embeddings=normalize_embeddings or truncate_dim is not None,
        **kwargs,
    )
