"""Fit maps from the base's vectors to each adapter's: one forward pass then gives all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from tqdm.auto import tqdm

from st_jv5.adapters import router_of
from st_jv5.encoding import encode
from st_jv5.machine.about import has_fast_bfloat16
from st_jv5.modules import AdapterRouter
from st_jv5.modules.heads import Heads, heads_in
from st_jv5.modules.rotation import rotation_in
from st_jv5.precision import Array, unit
from st_jv5.task_table import BASE, unknown_name

__all__ = ["fit_heads", "ridge"]

STRENGTHS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Strengths of the regularisation, per row; the best one on held-out rows is taken."""
FOLDS = 10
"""A text is in one of so many parts; one part is held out."""
BATCH = 2048
"""Rows of a training step."""
RATE, WARMUP, WEIGHT_DECAY = 1e-3, 0.05, 0.05
"""Peak learning rate, share of the steps that it rises for, and decay of matrices."""


def fit_heads(
    model: SentenceTransformer,
    texts: Sequence[str],
    *,
    tasks: Sequence[str] | None = None,
    hidden: int = 2048,
    steps: int = 2000,
    show_progress_bar: bool = False,
) -> dict[str, float]:
    """Fit heads, small maps from the base's vectors to each adapter's, and add them to the model.

    Then ``encode(texts, task=..., mode="head")`` costs as much as encoding with the base, and
    ``encode_all_tasks(..., mode="head")`` costs one forward pass for all tasks together. Stored
    vectors of the base can be turned into a task's vectors without the texts
    (:func:`st_jv5.vectors.convert`). With ``mode="head"`` texts get the base's prompts, even for a
    task whose prompts differ from the base's.

    A head begins as a ridge regression in closed form, whose regularisation is chosen on held-out
    rows. Then a hidden layer beside it is trained, with it, to lower 1 - cosine with the adapter's
    vectors (AdamW). A tenth of the texts is held out of that; a hidden layer that does not come
    nearer to the adapter on them is left out. The training runs where the model is: seconds on a
    GPU, minutes a task on a CPU, its products in bfloat16 where the hardware multiplies that.

    A head is less than its adapter. With six layers of MiniLM and 100,000 texts, on the test split,
    it had 97.8% of the retrieval adapter's score, 100% of text-matching's, 97.3% of clustering's
    and 98.2% of classification's (docs/results.md). Without the hidden layer the last two had 94
    and 95%.

    Heads are saved with the model. When an adapter changes, fit its head again.

    Args:
        model: An st_jv5 model with adapters.
        texts: Texts like those that will be encoded; tens of thousands are best. A task with
            several prompts encodes each text with each prompt.
        tasks: Adapters to fit heads for; None takes all. Heads of other adapters are kept.
        hidden: Width of the hidden layer; 0 leaves it out.
        steps: Training steps of the hidden layer, of 2,048 rows each.
        show_progress_bar: Show a progress bar of the training.

    Returns:
        Task -> mean cosine of the head's vectors with the adapter's, on held-out rows.

    Raises:
        ValueError: Fewer different texts than twice the model's dims, an unknown task, or a
            negative width or number of steps.

    Example:
        >>> many = [f"{text} {i}" for text in texts for i in range(2)]
        >>> sorted(fit_heads(model, many, tasks=["clustering"], hidden=8, steps=2))
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
    for key, value in (("hidden", hidden), ("steps", steps)):
        if value < 0:
            raise ValueError(f"{key} must be 0 or more, not {value}")
    with model.truncate_embeddings(None):
        fitted = _fitted(model, names, texts, hidden if steps else 0, steps, show_progress_bar)
    known = heads_in(model)
    kept = [] if known is None else [known.one(name) for name in known.tasks if name not in names]
    _put(model, Heads.joined([*kept, *(heads for heads, _ in fitted)]))
    return {name: cosine for name, (_, cosine) in zip(names, fitted, strict=True)}


def _fitted(
    model: SentenceTransformer,
    names: Sequence[str],
    texts: Sequence[str],
    hidden: int,
    steps: int,
    bar: bool,
) -> list[tuple[Heads, float]]:
    """Each task's head, and its cosine with the adapter on held-out rows."""
    router = router_of(model)
    width = model.get_embedding_dimension() or 0
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    if len(places) < 2 * width:
        raise ValueError(
            f"{len(places)} different texts cannot fit maps of {width} dims; pass {2 * width} or "
            f"more, ten times as many for good ones"
        )
    found, of_base = [], dict[str, Array]()
    folds = np.array([places[text] % FOLDS for text in texts])
    for name in names:
        sides = []
        for own, prompt in _prompts(router, name):
            if own not in of_base:
                of_base[own] = _plain(model, encode(model, texts, task=BASE, prompt=own))
            adapters = _plain(model, encode(model, texts, task=name, prompt=prompt))
            sides.append((of_base[own], adapters))
        base, adapter = (np.concatenate(rows) for rows in zip(*sides, strict=True))
        own_folds = np.tile(folds, len(sides))
        one, cosine = _linear(name, base, adapter, own_folds)
        if hidden:
            other, nearer = _trained(
                name, base, adapter, own_folds, hidden, steps, bar, model.device
            )
            if nearer > cosine:
                one, cosine = other, nearer
        found.append((one, cosine))
    return found


def _linear(name: str, base: Array, adapter: Array, folds: Array) -> tuple[Heads, float]:
    """A task's head without a hidden layer, and its cosine on held-out rows."""
    weight, bias, cosine = ridge(base, adapter, folds)
    head = Heads(base.shape[1], [name])
    state = {"weight": torch.from_numpy(weight.T), "bias": torch.from_numpy(bias)}
    head.maps[name].load_state_dict(state)
    return head, cosine


def _trained(
    name: str,
    base: Array,
    adapter: Array,
    folds: Array,
    hidden: int,
    steps: int,
    bar: bool,
    device: torch.device,
) -> tuple[Heads, float]:
    """The same with a hidden layer, trained on the rows that are not held out."""
    held = folds == folds.min()
    start, _ = _linear(name, base[~held], adapter[~held], folds[~held])
    draw = torch.Generator().manual_seed(0)
    head = Heads(base.shape[1], [name], {name: hidden})
    head.maps.load_state_dict(start.maps.state_dict())
    layers: Any = head.layers[name]
    into, _, out = layers
    for tensor in (into.weight, into.bias):
        nn.init.uniform_(tensor, -(base.shape[1] ** -0.5), base.shape[1] ** -0.5, generator=draw)
    for tensor in (out.weight, out.bias):
        nn.init.zeros_(tensor)
    head.to(device).requires_grad_(True)
    rows, wanted = (torch.from_numpy(unit(one)).float().to(device) for one in (base, adapter))
    learn = torch.from_numpy(np.flatnonzero(~held))
    parameters = list(head.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=steps + 1, pct_start=WARMUP
    )
    size, fast = min(BATCH, len(learn)), has_fast_bfloat16(device)
    # Inside a caller's autocast its cache would keep the first step's casts of the weights.
    low = torch.autocast(device.type, torch.bfloat16, enabled=fast, cache_enabled=False)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for _ in tqdm(range(steps), desc=name, unit="step", disable=not bar):
            batch = learn[torch.randint(len(learn), (size,), generator=draw)].to(device)
            with low:
                cosines = (head.mapped(name, rows[batch]) * wanted[batch]).sum(dim=1)
            optimizer.zero_grad()
            (1 - cosines.mean()).backward()
            optimizer.step()
            schedule.step()
    head.requires_grad_(False)
    own = torch.from_numpy(held).to(device)
    nearer = (head.through(name, rows[own]) * wanted[own]).sum(dim=1).mean()
    return head.cpu(), float(nearer)


def ridge(inputs: Array, targets: Array, folds: Array) -> tuple[Array, Array, float]:
    """Fit a linear map by ridge regression: least squared error, with small weights.

    Args:
        inputs: ``(n, D)``.
        targets: ``(n, E)`` unit rows.
        folds: ``(n,)`` integers, of two values or more; the rows of the lowest are held out.

    Returns:
        Weights ``(D, E)`` and bias ``(E,)``, float64, fitted on all rows; and the mean cosine with
        the targets on held-out rows, by a map fitted on the other rows.

    Example:
        >>> rows = unit(np.random.default_rng(0).standard_normal((100, 4)))
        >>> weight, bias, cosine = ridge(rows, rows[:, ::-1], np.arange(100) % 10)
        >>> round(cosine, 3)
        1.0
    """
    inputs, targets = inputs.astype(np.float64), targets.astype(np.float64)
    held = folds == folds.min()
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
