"""Encoding beyond ``model.encode``: batches by tokens, mixed tasks, all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from tqdm.auto import tqdm

from st_jv5.adapters import router_of
from st_jv5.batching import default_budget, token_batches
from st_jv5.tasks import unknown_name

BLOCK_TEXTS = 1024
"""Texts that are tokenised together; bounds the memory of their padded tokens."""


def encode(
    model: SentenceTransformer,
    texts: Sequence[str],
    task: str | None = None,
    prompt_name: str | None = None,
    dim: int | None = None,
    batch_tokens: int | None = None,
    show_progress_bar: bool = False,
    prompt: str | None = None,
) -> np.ndarray[Any, Any]:
    """``model.encode`` with batches filled by tokens, so that one long text does not pad thirty.

    Texts are tokenised once, sorted by their number of tokens and batched up to ``batch_tokens``
    padded tokens.

    Args:
        model: A model of ours, or any text model (which knows no task and no dim).
        texts: Texts.
        task: Task or alias.
        prompt_name: Prompt's name; None is the task's default.
        dim: Cut to so many dims, unit rows.
        batch_tokens: Padded tokens per batch; None fits the device.
        show_progress_bar: In texts, with the time left.
        prompt: The prompt's text, instead of its name.

    Returns:
        float32 ``(n, dim)``, rows in the order of the texts.

    Example:
        >>> encode(student, ["a cat", "a dog"], task="base").shape
        (2, 384)
    """
    if (task, dim) != (None, None):
        router_of(model)
    texts = list(texts)
    if prompt_name is not None and prompt_name not in model.prompts:
        raise ValueError(unknown_name("prompt", prompt_name, model.prompts, "this model"))
    if batch_tokens is not None and batch_tokens < 1:
        raise ValueError(f"batch_tokens must be positive, not {batch_tokens}")
    if not texts:
        width = model.get_embedding_dimension()
        return np.zeros((0, dim or width), dtype=np.float32)
    if prompt is None:
        prompt = model.prompts.get(prompt_name or model.default_prompt_name or "")
    named = {key: value for key, value in (("task", task), ("dim", dim)) if value is not None}
    budget = batch_tokens or default_budget(model.device.type)
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    vectors: np.ndarray[Any, Any] | None = None
    model.eval()
    with (
        torch.inference_mode(),
        tqdm(total=len(texts), unit="text", disable=not show_progress_bar) as bar,
    ):
        for begin in range(0, len(order), BLOCK_TEXTS):
            block = order[begin : begin + BLOCK_TEXTS]
            block_texts = [texts[i] for i in block]
            features = model.preprocess(block_texts, prompt=prompt, **named)
            for rows, batch in token_batches(features, budget):
                output = model(batch_to_device(batch, model.device), **named)
                part = output["sentence_embedding"].float().cpu().numpy()
                if vectors is None:
                    vectors = np.empty((len(texts), part.shape[1]), dtype=np.float32)
                vectors[[block[row] for row in rows]] = part
                bar.update(len(rows))
    assert vectors is not None
    return vectors


def encode_mixed(
    model: SentenceTransformer,
    texts: Sequence[str],
    tasks: Sequence[str],
    prompt_names: Sequence[str | None] | None = None,
) -> np.ndarray[Any, Any]:
    """Encode texts that each have a task of their own; equal ones are computed once.

    Args:
        model: A model of ours.
        texts: ``n`` texts.
        tasks: ``n`` tasks or aliases.
        prompt_names: ``n`` prompt names, or None for each task's default.

    Returns:
        float32 ``(n, D)``, rows in the order of the texts.

    Example:
        >>> encode_mixed(student, ["a cat", "a dog"], ["query", "base"]).shape
        (2, 384)
    """
    prompt_names = [None] * len(texts) if prompt_names is None else prompt_names
    if not len(texts) == len(tasks) == len(prompt_names):
        raise ValueError(
            f"{len(texts)} texts, {len(tasks)} tasks and {len(prompt_names)} prompt names must be "
            f"as many"
        )
    groups: dict[tuple[str, str | None], list[int]] = {}
    for index, group in enumerate(zip(tasks, prompt_names, strict=True)):
        groups.setdefault(group, []).append(index)
    vectors = np.empty((len(texts), model.get_embedding_dimension()), dtype=np.float32)
    for (task, prompt_name), rows in groups.items():
        unique = list(dict.fromkeys(texts[row] for row in rows))
        place = {text: index for index, text in enumerate(unique)}
        encoded = encode(model, unique, task=task, prompt_name=prompt_name)
        vectors[rows] = encoded[[place[texts[row]] for row in rows]]
    return vectors


def encode_all_tasks(
    model: SentenceTransformer, texts: Sequence[str]
) -> dict[str, np.ndarray[Any, Any]]:
    """Encode texts with every adapter: task -> float32 ``(n, D)``.

    Example:
        >>> sorted(encode_all_tasks(model, ["a cat"]))
        ['classification', 'clustering', 'retrieval', 'text-matching']
    """
    return {name: encode(model, texts, task=name) for name in router_of(model).tasks}
