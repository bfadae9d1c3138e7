"""Fit a map from the base's vectors to each adapter's, so that one forward pass gives all tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from st_jv5.adapters import router_of
from st_jv5.encoding import encode
from st_jv5.modules import AdapterRouter
from st_jv5.modules.heads import Heads, heads_in
from st_jv5.modules.rotation import rotation_in
from st_jv5.precision import Array, unit
from st_jv5.task_table import BASE, unknown_name

__all__ = ["fit_heads", "ridge"]

STRENGTHS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Strengths of the regularisation, per row; the best one on held-out rows is taken."""
HELD_OUT = 10
"""Every so many-th row is held out."""


def fit_heads(
    model: SentenceTransformer, texts: Sequence[str], *, tasks: Sequence[str] | None = None
) -> dict[str, float]:
    """Fit heads, linear maps from the base's vectors to each adapter's, and add them to the model.

    Then ``encode(texts, task=..., mode="head")`` costs as much as encoding with the base, and
    ``encode_all_tasks(..., mode="head")`` costs one forward pass for all tasks together. Stored
    vectors of the base can be turned into a task's vectors without the texts
    (:func:`st_jv5.vectors.convert`). The maps are ridge regressions in closed form; the strength of
    the regularisation is chosen on held-out rows. With ``mode="head"`` texts get the base's
    prompts, even for a task whose prompts differ from the base's.

    A head is less than its adapter: it keeps about half of what the adapter gains over the base.
    With six layers of MiniLM a head had 97.5% of the retrieval adapter's score, 99.7% of
    text-matching's, 94% of clustering's and 95% of classification's (eval/studies/heads.py).

    Heads are saved with the model. When an adapter changes, fit its head again.

    Args:
        model: An st_jv5 model with adapters.
        texts: Texts like those that will be encoded; at least ten times as many as the model has
            dims are best. A task with several prompts encodes each text with each prompt.
        tasks: Adapters to fit heads for; None takes all. Heads of other adapters are kept.

    Returns:
        Task -> mean cosine of the head's vectors with the adapter's, on held-out rows.

    Raises:
        ValueError: Fewer texts than twice the model's dims, or an unknown task.

    Example:
        >>> many = [f"{text} {i}" for text in texts for i in range(2)]
        >>> sorted(fit_heads(model, many, tasks=["clustering"]))
        ['clustering']
        >>> model.encode(["a cat"], task="clustering", mode="head").shape
        (1, 384)
    """
    router = router_of(model)
    names = list(router.tasks) if tasks is None else list(tasks)
    for name in names:
        if name not in router.tasks:
            raise ValueError(unknown_name("task", name, router.tasks, "this model"))
    if not names:
        raise ValueError("this model has no adapters to fit heads to; add one: st_jv5.add_task")
    with model.truncate_embeddings(None):
        heads, cosines = _fitted(model, names, texts)
    _put(model, heads)
    return cosines


def _fitted(
    model: SentenceTransformer, names: Sequence[str], texts: Sequence[str]
) -> tuple[Heads, dict[str, float]]:
    """Heads of some tasks beside those of others that are there, and their cosines."""
    router = router_of(model)
    width = model.get_embedding_dimension() or 0
    if len(texts) < 2 * width:
        raise ValueError(
            f"{len(texts)} texts cannot fit maps of {width} dims; pass {2 * width} or more, ten "
            f"times as many for good ones"
        )
    known = heads_in(model)
    kept = {} if known is None else {n: m for n, m in known.maps.items() if n not in names}
    heads = Heads(width, [*kept, *names])
    cosines, of_base = {}, dict[str, Array]()
    for name in names:
        sides = []
        for own, prompt in _prompts(router, name):
            if own not in of_base:
                of_base[own] = _plain(model, encode(model, texts, task=BASE, prompt=own))
            adapters = _plain(model, encode(model, texts, task=name, prompt=prompt))
            sides.append((of_base[own], adapters))
        base, adapter = (np.concatenate(rows) for rows in zip(*sides, strict=True))
        weight, bias, cosines[name] = ridge(base, adapter)
        state = {"weight": torch.from_numpy(weight.T), "bias": torch.from_numpy(bias)}
        heads.maps[name].load_state_dict(state)
    for name, one in kept.items():
        heads.maps[name].load_state_dict(one.state_dict())
    return heads, cosines


def ridge(inputs: Array, targets: Array) -> tuple[Array, Array, float]:
    """Fit a linear map by ridge regression: least squared error, with small weights.

    Args:
        inputs: ``(n, D)``.
        targets: ``(n, E)`` unit rows.

    Returns:
        Weights ``(D, E)`` and bias ``(E,)``, float64, fitted on all rows; and the mean cosine with
        the targets on held-out rows, by a map fitted on the other rows.

    Example:
        >>> rows = unit(np.random.default_rng(0).standard_normal((100, 4)))
        >>> weight, bias, cosine = ridge(rows, rows[:, ::-1])
        >>> round(cosine, 3)
        1.0
    """
    inputs, targets = inputs.astype(np.float64), targets.astype(np.float64)
    held = np.arange(len(inputs)) % HELD_OUT == 0
    of_others = _Ridge(inputs[~held], targets[~held])

    def score(strength: float) -> float:
        weight, bias = of_others.at(strength)
        found = unit(inputs[held] @ weight + bias)
        return float((found * targets[held]).sum(axis=1).mean())

    scores = {strength: score(strength) for strength in STRENGTHS}
    best = max(scores, key=lambda strength: scores[strength])
    return *_Ridge(inputs, targets).at(best), scores[best]


class _Ridge:
    """Ridge regression whose strengths share one decomposition of the inputs."""

    def __init__(self, inputs: Array, targets: Array) -> None:
        self.middle, self.aim, self.count = inputs.mean(axis=0), targets.mean(axis=0), len(inputs)
        rows = inputs - self.middle
        self.values, self.axes = np.linalg.eigh(rows.T @ rows)
        self.seen = self.axes.T @ (rows.T @ (targets - self.aim))

    def at(self, strength: float) -> tuple[Array, Array]:
        """Weights and bias."""
        weight = self.axes @ (self.seen / (self.values + strength * self.count)[:, None])
        return weight, self.aim - self.middle @ weight


def _prompts(router: AdapterRouter, task: str) -> list[tuple[str, str]]:
    """For each of a task's prompts: the base's prompt of that name, and the task's."""
    own = router.prompts
    named = [name for name in router.tasks[task].prompts if name in own]
    pairs = [(own[name], router.prompt_for(task, own[name]) or "") for name in named]
    return list(dict.fromkeys(pairs))


def _plain(model: SentenceTransformer, vectors: Array) -> Array:
    """Vectors as they are without the model's rotation."""
    rotation = rotation_in(model)
    return vectors if rotation is None else vectors @ rotation.weight.cpu().numpy()


def _put(model: SentenceTransformer, heads: Heads) -> None:
    """Put heads behind the pooling, in place of those that are there."""
    modules = [module for module in model if not isinstance(module, Heads)]
    place = next(i for i, one in enumerate(modules) if isinstance(one, Pooling)) + 1
    modules.insert(place, heads.to(model.device).eval())
    model._modules = {str(index): module for index, module in enumerate(modules)}
    heads.on_model_ready(model)
