"""An orthogonal matrix applied after the pooling."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, cast

import torch
from sentence_transformers.base.modules import Dense
from torch import Tensor, nn

from st_jv5.modules.in_float32 import InFloat32


class Rotation(InFloat32, Dense):
    """Multiply embeddings by an orthogonal matrix, so that their first dims carry the most.

    A rotation changes no cosine and no length at full width. The matrix stays in float32, whatever
    the model's dtype, and is never trained.

    Args:
        dim: Width of the embeddings.
        weight: Orthogonal ``(dim, dim)``, a row per new axis; None is the identity.

    Raises:
        ValueError: The weight has another shape, or is not orthogonal to 1e-4.

    Example:
        >>> Rotation(384).get_embedding_dimension()
        384
    """

    config_keys: ClassVar[list[str]] = ["dim"]

    def __init__(self, dim: int, weight: Tensor | None = None) -> None:
        start = torch.eye(dim) if weight is None else weight.float()
        super().__init__(
            dim, dim, bias=False, activation_function=None, init_weight=start.contiguous()
        )
        self.dim = dim
        if weight is not None:
            self.check("the rotation")
        self.requires_grad_(False)

    @property
    def weight(self) -> Tensor:
        """Orthogonal float32 ``(dim, dim)``, a row per new axis."""
        linear: Any = self.linear
        return cast(Tensor, linear.weight)

    def check(self, source: str) -> None:
        """An error that begins with ``source``, unless the matrix is a rotation."""
        if self.weight.shape != (self.dim, self.dim):
            raise ValueError(
                f"{source} is {tuple(self.weight.shape)}, and the embeddings have {self.dim} dims"
            )
        if not is_orthogonal(self.weight):
            raise ValueError(f"{source} is not an orthogonal matrix: it would change the cosines")

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Replace ``features["sentence_embedding"]`` ``(n, dim)``, in float32."""
        embedding: Tensor = features["sentence_embedding"]
        with torch.autocast(embedding.device.type, enabled=False):
            turned = nn.functional.linear(embedding.to(self.weight.dtype), self.weight)
        features["sentence_embedding"] = turned
        return features

    def get_config_dict(self) -> dict[str, Any]:
        return {"dim": self.dim}

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Rotation:
        """Read it; an error names the folder whose matrix is none."""
        rotation: Rotation = super().load(model_name_or_path, subfolder=subfolder, **kwargs)
        rotation.check(f"{model_name_or_path}/{subfolder}/model.safetensors")
        return rotation

    def stock(self, dtype: torch.dtype) -> Dense:
        """The same as a module that sentence-transformers knows by itself."""
        return Dense(
            self.dim,
            self.dim,
            bias=False,
            activation_function=None,
            init_weight=self.weight.detach().clone().to(dtype),
        )


def is_orthogonal(weight: Tensor) -> bool:
    """Whether a square matrix is orthogonal, to 1e-4 in each element of ``W Wᵀ``.

    In half precision to its rounding: 1e-3 of float16, 8e-3 of bfloat16.
    """
    allowed = max(1e-4, torch.finfo(weight.dtype).eps)
    wide = weight.detach().double()
    if wide.ndim != 2 or wide.shape[0] != wide.shape[1]:
        return False
    product = wide @ wide.T
    one = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    return bool(((product - one).abs() < allowed).all().item())


def rotation_in(modules: Iterable[Any]) -> Rotation | None:
    """The rotation among a model's modules, if there is one."""
    return next((module for module in modules if isinstance(module, Rotation)), None)
