"""Rotate a model's vectors so that the first dims say the most and the others can be cut off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import Tensor, nn

from st_jv5.encoding import encode
from st_jv5.modules import AdapterRouter, MatryoshkaTruncate, Rotation
from st_jv5.modules.rotation import is_orthogonal
from st_jv5.precision import Array, unit
from st_jv5.task_table import BASE

__all__ = ["rotate", "unrotate"]

DIMS = (16, 32, 64, 128)
"""Dims that a rotation is refined for, those below the width."""
TEMPERATURE = 0.05
"""Temperature of the neighbours' softmax."""
BATCH = 512
"""Texts or pairs of a step."""
RATE = 0.005
"""Size of a step: about the mean angle by which an axis turns."""


def rotate(
    model: SentenceTransformer,
    texts_or_pairs: Sequence[str] | Sequence[tuple[str, str]],
    *,
    tasks: Sequence[str] | None = None,
    steps: int = 400,
) -> None:
    """Rotate a model's vectors, in place, so that their first dims carry the most information.

    Cosines of full-width vectors stay the same, within 1e-6 (in a stock model of half precision,
    whose ``Dense`` has half precision, too: within its rounding). One rotation serves all tasks, so
    vectors of two adapters can still be compared. The rotation starts with the eigenvectors of the
    symmetrised cross-covariance of queries and documents (of the second moment, for single texts),
    largest eigenvalue first. Then :func:`refined` trains it until cut vectors have the same
    neighbours as full vectors. The model's weights are not trained.

    Cut vectors become better, but binary vectors of full width score about two points lower than
    before (int8 ones score the same). If you store binary vectors, do not rotate, or call
    :func:`unrotate`.

    An st_jv5 model gets a :class:`~st_jv5.modules.Rotation` behind its pooling. Any other model
    gets a stock ``Dense``, so it loads wherever it loaded before. Save the model as usual. An index
    made before the rotation does not fit the rotated model, and the model's hash changes. A model
    that is already rotated gets a new rotation in place of the old one.

    Args:
        model: An st_jv5 model, a published jina v5, or any text model of sentence-transformers.
        texts_or_pairs: Pairs of a query and a document, which get the query and the document
            prompt, or texts like those that will be encoded. At least as many texts as the model
            has dims. Pairs are better for search, and many are better than few: of a base's search
            at 32 dims 16,000 texts kept 72%, 3,000 pairs 76% and 14,000 pairs 79%.
        tasks: Adapters whose vectors are used; None takes all, or the base if the model has no
            adapters.
        steps: Training steps of the rotation; 0 keeps the eigenvectors.

    Raises:
        ValueError: There are too few texts, a task is unknown, tasks are given for a model without
            adapters, or the model's projection has separate maps for cut vectors.

    Example:
        >>> before = student.encode(texts)
        >>> rotate(student, texts, steps=2)
        >>> bool(np.allclose(student.encode(texts) @ student.encode(texts).T, before @ before.T,
        ...      atol=1e-5))
        True
        >>> unrotate(student)
    """
    router = model[0]
    ours = isinstance(router, AdapterRouter)
    if tasks is not None and not ours:
        raise ValueError(
            f"a model of {type(router).__name__} has no tasks; leave out tasks={list(tasks)}"
        )
    if ours:
        _check_projection(router)
    sides = _sides(texts_or_pairs)
    names: list[str | None] = [None]
    if ours:
        names = [*(list(router.tasks) or [BASE] if tasks is None else tasks)]
        for name in names:
            router.resolve(name)
    with model.truncate_embeddings(None):
        width, count = model.get_embedding_dimension() or 0, sum(map(len, sides.values()))
        if count < width:
            raise ValueError(
                f"{count} texts cannot put {width} dims in order; pass {width} or more"
            )
        unrotate(model)
        groups = []
        for name in names:
            rows = [
                encode(model, own, task=name, prompt=_prompt(model, name, side))
                for side, own in sides.items()
            ]
            groups.append(np.stack([unit(one) for one in rows], axis=1))
    moment = np.sum([moment_of(group) for group in groups], axis=0)
    axes = refined(axes_of(moment), groups, steps)
    _put(model, torch.from_numpy(axes.T.copy()))


def unrotate(model: SentenceTransformer) -> None:
    """Remove a model's rotation, in place; a model without a rotation is left as it is.

    The vectors are then those from before :func:`rotate`, up to rounding. Call it before an export
    to a format that cannot hold a rotation (GGUF).

    Example:
        >>> unrotate(student)
    """
    place = _place_of_rotation(model)
    if place is None:
        return
    modules = list(model)
    _turn_projection(model, _weight(modules.pop(place)).T)
    _set_modules(model, modules)


def moment_of(rows: Array) -> Array:
    """Mean of ``x xᵀ`` over texts; over pairs, mean of ``x yᵀ``, made symmetric.

    Args:
        rows: Unit rows: ``(n, 1, D)`` for texts, ``(n, 2, D)`` for pairs.

    Returns:
        float64 ``(D, D)``.

    Example:
        >>> moment_of(np.array([[[1.0, 0.0]], [[0.0, 1.0]]])).tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    one, other = rows[:, 0].astype(np.float64), rows[:, -1].astype(np.float64)
    found: Array = (one.T @ other + other.T @ one) / (2 * len(rows))
    return found


def axes_of(moment: Array) -> Array:
    """The eigenvectors as orthonormal columns ``(D, D)``, largest eigenvalue first.

    An eigenvector has no fixed sign; here its element of largest absolute value is positive, so
    that equal moments give equal axes.

    Example:
        >>> axes_of(np.diag([1.0, 3.0])).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    values, vectors = np.linalg.eigh((moment + moment.T) / 2)
    axes = vectors[:, np.argsort(-values, kind="stable")]
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(len(axes))]
    found: Array = axes * np.sign(largest)
    return found


def refined(axes: Array, groups: Sequence[Array], steps: int, seed: int = 0) -> Array:
    """Train axes until vectors cut to few dims have the same neighbours as at full width.

    Gradient descent over rotations (Cayley's transform of a skew-symmetric step, with momentum).
    The loss is the KL divergence between a text's neighbours in a batch at full width and at each
    of :data:`DIMS`; the neighbours are a softmax over cosines divided by :data:`TEMPERATURE`.

    Args:
        axes: Orthonormal columns ``(D, D)``.
        groups: Unit rows ``(n, sides, D)``, one array per task; the steps take them in turn.
        steps: 0 leaves the axes as they are.
        seed: Seed of the draw of batches.

    Returns:
        Orthonormal columns, float64 ``(D, D)``.

    Example:
        >>> rows = unit(np.random.default_rng(0).standard_normal((40, 32)))[:, None]
        >>> axes = refined(np.eye(32), [rows], steps=3)
        >>> bool(np.allclose(axes.T @ axes, np.eye(32)))
        True
    """
    width = len(axes)
    dims = [dim for dim in DIMS if dim < width]
    if steps < 1 or not dims:
        return axes
    draw = torch.Generator().manual_seed(seed)
    rows = [torch.from_numpy(group.astype(np.float32)) for group in groups]
    turn, whole = torch.from_numpy(axes).float(), torch.eye(width)
    momentum, square = torch.zeros(width, width), 0.0
    with torch.autocast("cpu", enabled=False):  # a caller's would cost digits
        for step in range(steps):
            own = rows[step % len(rows)]
            batch = own[torch.randperm(len(own), generator=draw)[:BATCH]].reshape(-1, width)
            with torch.enable_grad():
                turn.requires_grad_(True)
                (slope,) = torch.autograd.grad(neighbours_lost(batch, batch @ turn, dims), turn)
            turn = turn.detach()
            skew = slope @ turn.T - turn @ slope.T
            momentum = 0.9 * momentum + skew
            square = 0.99 * square + 0.01 * float(skew.square().mean())
            size = RATE * min(1.0, 2 * (steps - step) / steps)
            size /= (square / (1 - 0.99 ** (step + 1))) ** 0.5 * width**0.5 + 1e-12
            half = -size / 2 * momentum
            turn = torch.linalg.solve(whole - half, (whole + half) @ turn)
            if step % 50 == 49:
                turn = torch.from_numpy(_orthonormal(turn.numpy())).float()
    return _orthonormal(turn.numpy())


def neighbours_lost(whole: Tensor, turned: Tensor, dims: Sequence[int]) -> Tensor:
    """Mean KL divergence between texts' neighbours at full width and at some dims: a scalar.

    Args:
        whole: ``(n, D)`` unit rows.
        turned: The same, rotated.
        dims: To cut to.
    """
    itself = torch.eye(len(whole), dtype=torch.bool, device=whole.device)

    def chances(rows: Tensor) -> Tensor:
        cosines = (rows @ rows.T / TEMPERATURE).masked_fill(itself, -1e4)
        return cosines.log_softmax(dim=1)

    wanted = chances(whole)
    lost = [
        nn.functional.kl_div(
            chances(nn.functional.normalize(turned[:, :dim], dim=1)),
            wanted,
            reduction="batchmean",
            log_target=True,
        )
        for dim in dims
    ]
    return torch.stack(lost).mean()


def _orthonormal(matrix: Array) -> Array:
    """The nearest orthogonal matrix, in float64."""
    left, _, right = np.linalg.svd(matrix.astype(np.float64))
    found: Array = left @ right
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
    """Index of the rotation among the modules, an st_jv5 one or a stock one that does the same."""
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
    """Put a rotation before the cut or normalisation at the end, or at the end."""
    ours = isinstance(model[0], AdapterRouter)
    last = (MatryoshkaTruncate, Normalize)
    modules = list(model)
    place = len(modules) - 1 if isinstance(modules[-1], last) else len(modules)
    rotation = Rotation(len(weight), weight)
    module = rotation if ours else rotation.stock(model.dtype or torch.float32)
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
