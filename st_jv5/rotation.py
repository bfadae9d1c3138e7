"""A model's axes in the order of what they say, so that its vectors can be cut to a few dims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import Tensor

from st_jv5.encoding import encode
from st_jv5.modules import AdapterRouter, MatryoshkaTruncate, Rotation
from st_jv5.modules.rotation import is_orthogonal
from st_jv5.precision import Array, unit
from st_jv5.task_table import BASE

__all__ = ["rotate", "unrotate"]


def rotate(
    model: SentenceTransformer,
    texts_or_pairs: Sequence[str] | Sequence[tuple[str, str]],
    *,
    tasks: Sequence[str] | None = None,
) -> None:
    """Rotate a model's space, in place, so that the first dims of its vectors say the most.

    Full-width vectors have the cosines that they had, within 1e-6. One rotation serves all tasks,
    so that vectors of two adapters can still be compared. The new axes are eigenvectors, largest
    eigenvalue first, of the second moment of the vectors (PCA, without a mean), summed over the
    tasks. Nothing is trained.

    A model of ours gets a :class:`~st_jv5.modules.Rotation` behind its pooling, any other a stock
    ``Dense``, so it loads where it did. Save it as ever. An index of vectors from before does not
    fit the rotated model (its hash is another one). A model that is rotated already is rotated
    anew.

    Args:
        model: A model of ours, a published jina v5, or any text model of sentence-transformers.
        texts_or_pairs: Texts like those to come, or pairs of a query and a document, which get the
            prompts of their sides. At least as many texts as the model has dims; some thousands are
            enough.
        tasks: Adapters whose vectors count; None takes all, and the base of a model that has none.

    Raises:
        ValueError: Too few texts, an unknown task, tasks for a model that has none, or a projection
            with maps of its own for cut vectors.

    Example:
        >>> before = student.encode(texts)
        >>> rotate(student, texts)
        >>> bool(np.allclose(student.encode(texts) @ student.encode(texts).T, before @ before.T,
        ...      atol=1e-5))
        True
        >>> unrotate(student)
    """
    router = model[0]
    ours = isinstance(router, AdapterRouter)
    if tasks is not None and not ours:
        raise ValueError(f"a model of {type(router).__name__} has no tasks, so not {list(tasks)}")
    if ours:
        _check_projection(router)
    sides = _sides(texts_or_pairs)
    width, count = model.get_embedding_dimension() or 0, sum(map(len, sides.values()))
    if count < width:
        raise ValueError(f"{count} texts cannot put {width} dims in order; pass {width} or more")
    names: list[str | None] = [None]
    if ours:
        names = [*(list(router.tasks) or [BASE] if tasks is None else tasks)]
        for name in names:
            router.resolve(name)
    unrotate(model)
    moment = np.zeros((width, width))
    for name in names:
        rows = [
            encode(model, own, task=name, prompt=_prompt(model, name, side))
            for side, own in sides.items()
        ]
        moment += second_moment([unit(one) for one in rows])
    _put(model, torch.from_numpy(axes_of(moment).T.copy()))


def unrotate(model: SentenceTransformer) -> None:
    """Take a model's rotation out again, in place; a model without one is left as it is.

    The vectors are the ones from before :func:`rotate`, to rounding. This is the way to engines
    that have no place for a rotation (GGUF).

    Example:
        >>> unrotate(student)
    """
    place = _place_of_rotation(model)
    if place is None:
        return
    modules = list(model)
    _turn_projection(model, _weight(modules.pop(place)).T)
    _set_modules(model, modules)


def second_moment(sides: Sequence[Array]) -> Array:
    """Mean of ``x xᵀ`` over unit rows: float64 ``(D, D)``; each side counts alike.

    Example:
        >>> second_moment([np.array([[1.0, 0.0], [0.0, 1.0]])]).tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    wide = [rows.astype(np.float64) for rows in sides if len(rows)]
    found: Array = np.mean([rows.T @ rows / len(rows) for rows in wide], axis=0)
    return found


def axes_of(moment: Array) -> Array:
    """Orthonormal columns ``(D, D)``, the axis of the largest eigenvalue first.

    An eigenvector's sign is free: the element of largest size is positive, so that equal moments
    give equal axes.

    Example:
        >>> axes_of(np.diag([1.0, 3.0])).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    values, vectors = np.linalg.eigh((moment + moment.T) / 2)
    axes = vectors[:, np.argsort(-values, kind="stable")]
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(len(axes))]
    found: Array = axes * np.sign(largest)
    return found


def _sides(texts_or_pairs: Sequence[Any]) -> dict[str, list[str]]:
    """Prompt's name -> texts."""
    if isinstance(texts_or_pairs, str):
        raise ValueError(f"texts must be a list, not one text: {texts_or_pairs[:60]!r}")
    rows = list(texts_or_pairs)
    if all(isinstance(row, str) for row in rows):
        return {"document": rows}
    for index, row in enumerate(rows):
        if isinstance(row, str) or len(row) != 2 or not all(isinstance(t, str) for t in row):
            raise ValueError(
                f"row {index} must be a pair of texts (query, document), like the others, not "
                f"{row!r:.80}"
            )
    return {"query": [query for query, _ in rows], "document": [text for _, text in rows]}


def _prompt(model: SentenceTransformer, task: str | None, side: str) -> str:
    """What goes before a side's texts."""
    prompt = model.prompts.get(side, model.prompts.get("document", ""))
    router = model[0]
    if isinstance(router, AdapterRouter):
        prompt = router.prompt_for(BASE if task is None else task, prompt)
    return prompt or ""


def _place_of_rotation(model: SentenceTransformer) -> int | None:
    """Of our module, or of a stock one that does the same."""
    for place, module in enumerate(model):
        if isinstance(module, Rotation):
            return place
        if (
            type(module) is Dense
            and not module.bias
            and not module.use_residual
            and isinstance(module.activation_function, torch.nn.Identity)
            and module.module_input_name == module.module_output_name == "sentence_embedding"
            and is_orthogonal(module.linear.weight)
        ):
            return place
    return None


def _weight(module: Any) -> Tensor:
    return cast(Tensor, module.linear.weight.detach())


def _put(model: SentenceTransformer, weight: Tensor) -> None:
    """Put a rotation before the cut or the last normalisation, or at the end."""
    ours = isinstance(model[0], AdapterRouter)
    last = (MatryoshkaTruncate, Normalize)
    place = next((i for i, one in enumerate(model) if isinstance(one, last)), len(model))
    rotation = Rotation(len(weight), weight)
    module = rotation if ours else rotation.stock(model.dtype or torch.float32)
    modules = list(model)
    modules.insert(place, module.to(model.device).eval())
    _set_modules(model, modules)
    _turn_projection(model, weight)


def _set_modules(model: SentenceTransformer, modules: Sequence[Any]) -> None:
    model._modules = {str(index): module for index, module in enumerate(modules)}


def _check_projection(router: AdapterRouter) -> None:
    projection = router.projection
    if projection is not None and projection.own_map_dims:
        raise ValueError(
            f"this model's projection has maps of its own for vectors cut to "
            f"{', '.join(map(str, projection.own_map_dims))} dims, which a rotation would mix; "
            f"rotate a model whose projection has none, or set model[0].projection to None"
        )


@torch.no_grad()
def _turn_projection(model: SentenceTransformer, weight: Tensor) -> None:
    """Have the projection read, or give, vectors turned by ``weight``, as before it was turned."""
    projection = getattr(model[0], "projection", None)
    if projection is None:
        return
    linear = projection.linear
    turn = weight.double().to(linear.weight.device)
    if projection.placement == "student_up":
        linear.weight.copy_(linear.weight.double() @ turn.T)
    else:
        linear.weight.copy_(turn @ linear.weight.double())
        linear.bias.copy_(turn @ linear.bias.double())
