"""Maps from the base's vectors to each adapter's: all tasks from one forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from sentence_transformers.base.modules import Module
from torch import Tensor, nn

from st_jv5.modules.in_float32 import InFloat32
from st_jv5.modules.owner import Owner, belong
from st_jv5.modules.rotation import rotation_in
from st_jv5.task_table import BASE, unknown_name

HEAD = "head"
"""The ``mode`` of an encoding that goes through the base and a task's head, without its adapter."""


class Heads(InFloat32, Module):
    r"""A map for each task, from the base's unit vectors to the task's.

    .. math:: y = W x + b + V \, \mathrm{gelu}(U \, \mathrm{LN}(x) + u) + v

    then scaled to length 1. A head without a hidden layer has ``W`` and ``b`` alone. The module
    comes after the pooling. It does nothing unless ``encode`` is called with ``mode="head"``.

    Args:
        dim: Width of the embeddings.
        tasks: Names of the adapters that have a head.
        hidden: Task -> width of its head's hidden layer, for those that have one.

    Example:
        >>> Heads(384, ["retrieval"]).tasks
        ['retrieval']
    """

    forward_kwargs: ClassVar[set[str]] = {"task", "mode"}
    config_keys: ClassVar[list[str]] = ["dim", "tasks", "hidden"]

    def __init__(
        self, dim: int, tasks: Sequence[str] = (), hidden: Mapping[str, int] | None = None
    ) -> None:
        super().__init__()
        self.dim = dim
        self.maps = nn.ModuleDict({name: nn.Linear(dim, dim) for name in tasks})
        self.layers = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, dim))
                for name, width in (hidden or {}).items()
            }
        )
        self._model = Owner()
        self.requires_grad_(False)

    @property
    def tasks(self) -> list[str]:
        """The tasks that have a head."""
        return list(self.maps)

    @property
    def hidden(self) -> dict[str, int]:
        """Task -> width of its hidden layer, of those that have one."""
        layers: dict[str, Any] = dict(self.layers.items())
        return {name: layer[0].out_features for name, layer in layers.items()}

    def one(self, task: str) -> Heads:
        """The head of one task, alone; it shares the weights."""
        found = Heads(self.dim)
        found.maps[task] = self.maps[task]
        if task in self.layers:
            found.layers[task] = self.layers[task]
        return found

    @classmethod
    def joined(cls, parts: Sequence[Heads]) -> Heads:
        """Heads of several tasks, of equal width, in one module; they share the weights."""
        found = cls(parts[0].dim)
        for part in parts:
            found.maps.update(dict(part.maps.items()))
            found.layers.update(dict(part.layers.items()))
        return found

    def on_model_ready(self, model: Any) -> None:
        belong(self, model)

    def forward(
        self,
        features: dict[str, Any],
        task: Any = None,
        mode: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Replace ``features["sentence_embedding"]`` ``(n, dim)`` by the task's unit rows."""
        if mode is None:
            return features
        name = head_of(self._model(), task, mode)
        features["sentence_embedding"] = self.through(name, features["sentence_embedding"])
        return features

    def through(self, name: str, vectors: Tensor) -> Tensor:
        """The base's vectors ``(n, dim)`` as the task's: float32 unit rows; the base's own stay."""
        rows = nn.functional.normalize(vectors.float(), dim=-1)
        if name == BASE:
            return rows
        with torch.autocast(rows.device.type, enabled=False):
            return self.mapped(name, rows)

    def mapped(self, name: str, rows: Tensor) -> Tensor:
        """Unit rows ``(n, dim)`` of the base as the task's; under autocast, by its products."""
        found: Tensor = self.maps[name](rows)
        if name in self.layers:
            found = found + self.layers[name](nn.functional.layer_norm(rows, (self.dim,)))
        return nn.functional.normalize(found.float(), dim=-1)

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        self.save_config(output_path)
        self.save_torch_weights(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Heads:
        """Read them; an error names the folder whose weights are no numbers."""
        where = ("token", "cache_folder", "revision", "local_files_only")
        hub = {"subfolder": subfolder, **{k: kwargs[k] for k in where if k in kwargs}}
        heads = cls(**cls.load_config(model_name_or_path, **hub))
        cls.load_torch_weights(model_name_or_path, model=heads, **hub)
        for name, tensor in heads.state_dict().items():
            if not bool(tensor.isfinite().all()):
                raise ValueError(
                    f"{model_name_or_path}/{subfolder}/model.safetensors: {name} is NaN or infinite"
                )
        return heads


def heads_in(modules: Iterable[Any]) -> Heads | None:
    """The heads among a model's modules, if it has any."""
    return next((module for module in modules if isinstance(module, Heads)), None)


def heads_of(model: Any) -> Heads:
    """The heads of a model.

    Raises:
        ValueError: It has none.
    """
    heads = None if model is None else heads_in(model)
    if heads is None:
        raise ValueError("this model has no heads; fit them: st_jv5.fit_heads(model, texts)")
    return heads


def head_of(model: Any, task: Any, mode: str) -> str:
    """The adapter whose head a task means, or ``"base"``.

    Raises:
        ValueError: Another mode, a blend, or a task, or a model, without a head.
    """
    if mode != HEAD:
        raise ValueError(unknown_name("mode", mode, [HEAD], "encode"))
    heads = heads_of(model)
    name = model[0].resolve(task) or BASE
    if name != BASE and name not in heads.maps:
        raise ValueError(
            f"{name!r} has no head; tasks with a head: {', '.join([*heads.tasks, BASE])}. A blend "
            f"has none; fit a task's with st_jv5.fit_heads(model, texts)"
        )
    return str(name)


@torch.no_grad()
def through_head(model: Any, vectors: Tensor, name: str) -> Tensor:
    """Full-width vectors of a model's base, as they leave it, as those of a task: unit rows.

    Args:
        model: With heads, and maybe a rotation, which is taken off before and put on again.
        vectors: float32 ``(n, D)``.
        name: What :func:`head_of` returned.
    """
    heads, rotation = heads_of(model), rotation_in(model)
    vectors = vectors.to(model.device)
    if rotation is None:
        return heads.through(name, vectors)
    return heads.through(name, vectors @ rotation.weight) @ rotation.weight.T
