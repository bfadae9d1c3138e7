"""Encoding in ways that ``model.encode`` lacks: batches by tokens, mixed tasks, all tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from tqdm.auto import tqdm

from st_jv5.adapters import router_of
from st_jv5.batching import default_budget, row_chunks, take
from st_jv5.engines.running import TORCH, check_engine, engine_of
from st_jv5.modules.heads import HEAD, head_of, heads_of, through_head
from st_jv5.modules.owner import sharing
from st_jv5.modules.padding import known_padding
from st_jv5.task_table import BASE, Blend, TaskName, unknown_name
from st_jv5.texts import check_texts

Array = np.ndarray[Any, Any]

BLOCK_TEXTS = 1024
"""Texts that are tokenised together; bounds the memory of their padded tokens."""
BLOCK_TEXTS_ELSEWHERE = 4096
"""Texts of a block on devices whose batches are larger than a CPU's: a block holds several."""
AHEAD = 2
"""Blocks that are tokenised ahead of a GPU."""
SHARED_TOKENS = 64
"""Tasks with so few tokens in a block share a batch; with more, a forward each is faster."""


class NotFiniteError(ValueError):
    """A vector is NaN or infinite; ``index`` is the index of its text."""

    def __init__(self, index: int, text: str) -> None:
        super().__init__(
            f"the vector of text {index} is NaN or infinite: {text!r:.200}; the weights are broken "
            f"or of too few digits for it: try float32"
        )
        self.index, self.text = index, text

    def __reduce__(self) -> Any:
        return NotFiniteError, (self.index, self.text)


class Progress(Protocol):
    """A progress bar, such as tqdm's."""

    def update(self, n: int) -> Any:
        """Add this many texts to those that are done."""


def encode(
    model: SentenceTransformer,
    texts: Sequence[str],
    task: TaskName | None = None,
    *,
    prompt_name: str | None = None,
    dim: int | None = None,
    batch_tokens: int | None = None,
    show_progress_bar: bool | Progress = False,
    prompt: str | None = None,
    mode: str | None = None,
    engine: str | None = None,
) -> Array:
    """Like ``model.encode``, with batches filled by tokens, so that there is less padding.

    Equal texts are computed once. Texts are tokenised once, sorted by their number of tokens and
    put into batches of up to ``batch_tokens`` padded tokens. For an empty text, or one of spaces,
    the model sees the prompt and the tokenizer's special tokens alone; if there are none of these
    either, an error names the text.

    Args:
        model: An st_jv5 model, or any other text model (without ``task``, ``dim`` and ``mode``).
        texts: ``n`` texts.
        task: Task or alias; or a blend, ``{"retrieval": 0.7, "classification": 0.3}``.
        prompt_name: Name of the prompt; None is the task's default.
        dim: Cut the vectors to this many dims; they have length 1 again.
        batch_tokens: Most padded tokens of a batch; None chooses by the device.
        show_progress_bar: Show a progress bar that counts texts; or a bar of the caller's own,
            which is updated.
        prompt: Text of the prompt, in place of ``prompt_name``.
        mode: ``"head"`` runs the base and then the task's head, a small map, instead of its
            adapter (:func:`st_jv5.fit_heads`).
        engine: What computes; None or ``"torch"`` is the model as it is. ``"bfloat16"`` is a copy
            of it in that dtype; ``"onnx"``, ``"onnx-int8"``, ``"openvino"`` and ``"openvino-int8"``
            are graphs of all tasks on a CPU, made once and kept on disk. ``"auto"`` is the one that
            ``st-jv5 doctor`` chose for this model on this machine; which one is logged once.

    Returns:
        float32 ``(n, dim)``, rows in the order of the texts.

    Raises:
        ValueError: A text is not a string; a task, prompt or dim is unknown; a vector is not
            finite (:class:`NotFiniteError`, with the text's index).

    Example:
        >>> encode(student, ["a cat", "a dog"], task="base").shape
        (2, 384)
    """
    if (task, dim, mode) != (None, None, None):
        router_of(model)
    if mode is not None:
        head_of(model, task, mode)
    texts = checked_texts(texts)
    prompt = prompt_named(model, prompt_name) if prompt is None else prompt
    index = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    rows = np.arange(len(index))
    found = _encode(
        model,
        list(index),
        prompt,
        [task],
        rows,
        rows * 0,
        dim,
        batch_tokens,
        show_progress_bar,
        mode,
        engine,
    )
    return finite(found if len(index) == len(texts) else found[[index[t] for t in texts]], texts)


def encode_mixed(
    model: SentenceTransformer,
    texts: Sequence[str],
    tasks: Sequence[TaskName],
    *,
    prompt_names: Sequence[str | None] | None = None,
    dim: int | None = None,
    batch_tokens: int | None = None,
    show_progress_bar: bool | Progress = False,
    engine: str | None = None,
) -> Array:
    """Encode texts of several tasks in one call; each text has its own task.

    All texts are tokenised together, and equal ones with equal tasks are computed once. A task with
    many tokens gets its own batches, in which its adapter is merged; tasks with few tokens share
    batches, in which each row runs through its own adapter.

    Args:
        model: An st_jv5 model.
        texts: ``n`` texts.
        tasks: ``n`` tasks, aliases or blends.
        prompt_names: ``n`` prompt names, or None for each task's default.
        dim: Cut the vectors to this many dims; they have length 1 again.
        batch_tokens: Most padded tokens of a batch; None chooses by the device.
        show_progress_bar: Show a progress bar that counts texts.
        engine: What computes, as for :func:`encode`.

    Returns:
        float32 ``(n, dim)``, rows in the order of the texts.

    Example:
        >>> encode_mixed(student, ["a cat", "a dog"], ["query", "base"]).shape
        (2, 384)
    """
    router = router_of(model)
    texts = checked_texts(texts)
    prompt_names = [None] * len(texts) if prompt_names is None else prompt_names
    if not len(texts) == len(tasks) == len(prompt_names):
        raise ValueError(
            f"{len(texts)} texts, {len(tasks)} tasks and {len(prompt_names)} prompt names: give "
            f"one task and one prompt name for each text"
        )
    named = [Blend(task) if isinstance(task, Mapping) else task for task in tasks]
    how = {
        (task, name): (
            router.resolve(task) or BASE,
            router.prompt_for(task, prompt_named(model, name)) or "",
        )
        for task, name in set(zip(named, prompt_names, strict=True))
    }
    adapters = list(dict.fromkeys(adapter for adapter, _ in how.values()))
    index: dict[str, int] = {}  # what is tokenised
    rows: dict[tuple[int, int], int] = {}  # text and adapter
    places = []
    for text, task, name in zip(texts, named, prompt_names, strict=True):
        adapter, prompt = how[task, name]
        number = index.setdefault(prompt + text, len(index))
        places.append(rows.setdefault((number, adapters.index(adapter)), len(rows)))
    of_text, of_task = np.array(list(rows), dtype=np.int64).reshape(-1, 2).T
    found = _encode(
        model,
        list(index),
        None,
        adapters,
        of_text,
        of_task,
        dim,
        batch_tokens,
        show_progress_bar,
        engine=engine,
    )
    return finite(found[places], texts)


def encode_all_tasks(
    model: SentenceTransformer,
    texts: Sequence[str],
    *,
    dim: int | None = None,
    batch_tokens: int | None = None,
    show_progress_bar: bool | Progress = False,
    mode: str | None = None,
    engine: str | None = None,
) -> dict[str, Array]:
    """Encode texts with every adapter and its default prompt.

    Returns a dict from task to float32 ``(n, dim)``. ``mode="head"`` encodes the texts once, with
    the base and its default prompt, and passes these vectors to the head of each task
    (:func:`st_jv5.fit_heads`). ``engine`` is what computes, as for
    :func:`encode`; heads need torch.

    Example:
        >>> sorted(encode_all_tasks(model, ["a cat"]))
        ['classification', 'clustering', 'retrieval', 'text-matching']
    """
    names, texts = list(router_of(model).tasks), checked_texts(texts)
    if mode is not None:
        check_engine(model, engine or TORCH, mode)
        return _all_heads(model, names, texts, dim, batch_tokens, show_progress_bar, mode)
    tasks = [name for name in names for _ in texts]
    rows = encode_mixed(
        model,
        list(texts) * len(names),
        tasks,
        prompt_names=None,
        dim=dim,
        batch_tokens=batch_tokens,
        show_progress_bar=show_progress_bar,
        engine=engine,
    )
    return dict(zip(names, rows.reshape(len(names), len(texts), rows.shape[1]), strict=True))


def _all_heads(
    model: SentenceTransformer,
    names: Sequence[str],
    texts: Sequence[str],
    dim: int | None,
    batch_tokens: int | None,
    show_progress_bar: bool | Progress,
    mode: str,
) -> dict[str, Array]:
    for name in names:
        head_of(model, name, mode)
    with model.truncate_embeddings(None):
        base = encode(
            model, texts, BASE, batch_tokens=batch_tokens, show_progress_bar=show_progress_bar
        )
    cuts = [asked for asked in (dim, model.truncate_dim) if asked is not None]
    cut = min(cuts, default=None)
    return {name: head_vectors(model, base, name, cut) for name in names}


def head_vectors(
    model: SentenceTransformer, vectors: Array, task: str, dim: int | None = None
) -> Array:
    """Turn vectors of a model's base into those of a task, by the task's head; no text is needed.

    Args:
        model: An st_jv5 model with heads.
        vectors: ``(n, D)``, vectors of its base at full width.
        task: Task or alias.
        dim: Cut the result to this many dims.

    Returns:
        float32 ``(n, dim)``, unit rows.
    """
    name = head_of(model, task, HEAD)
    width = heads_of(model).dim
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise ValueError(f"a head takes the base's full width, (n, {width}), not {vectors.shape}")
    found = through_head(model, torch.tensor(vectors), name)
    cut: dict[str, Any] = {} if dim is None else {"dim": dim}
    rows: Array = (
        model[-1]({"sentence_embedding": found}, **cut)["sentence_embedding"].cpu().numpy()
    )
    return rows


# -------------------------------------------------------------------------------- the one loop


def checked_texts(texts: Sequence[str]) -> list[str]:
    """A list of texts; an error says what else was given, and names the first that is no text."""
    if isinstance(texts, str):
        raise ValueError(f"texts must be a list, not one text; write [{texts[:60]!r}]")
    if isinstance(texts, bytes | Mapping | Set) or hasattr(texts, "columns"):
        raise ValueError(
            f"texts must be a list of str, not {type(texts).__name__}; pass one column of a table"
        )
    texts = list(texts)
    check_texts(texts)
    return texts


def finite(vectors: Array, texts: Sequence[str]) -> Array:
    """The vectors ``(n, dim)`` of texts, if all are finite; else :class:`NotFiniteError`."""
    rows = np.isfinite(vectors).all(axis=1)
    if not rows.all():
        index = int(rows.argmin())
        raise NotFiniteError(index, texts[index])
    return vectors


def prompt_named(model: SentenceTransformer, name: str | None) -> str | None:
    """A prompt's text by its name; None names the model's default."""
    if name is not None and name not in model.prompts:
        raise ValueError(unknown_name("prompt", name, model.prompts, "this model"))
    return model.prompts.get(name or model.default_prompt_name or "")


def _encode(
    model: SentenceTransformer,
    texts: list[str],
    prompt: str | None,
    tasks: Sequence[TaskName | None],
    of_text: Array,
    of_task: Array,
    dim: int | None,
    batch_tokens: int | None,
    show_progress_bar: bool | Progress,
    mode: str | None = None,
    engine: str | None = None,
) -> Array:
    """Encode ``n`` rows, each a text under a task.

    Args:
        model: Any text model.
        texts: What is tokenised, each once.
        prompt: Goes before every text.
        tasks: Tasks; None for a model that has none.
        of_text: ``(n,)``, index of each row's text.
        of_task: ``(n,)``, index of each row's task.
        dim: The model's ``dim``.
        batch_tokens: Padded tokens per batch.
        show_progress_bar: Show a bar in rows.
        mode: The model's ``mode``.
        engine: What computes.

    Returns:
        float32 ``(n, D)``.
    """
    if batch_tokens is not None and batch_tokens < 1:
        raise ValueError(f"batch_tokens must be positive, not {batch_tokens}")
    compute = engine_of(model, engine, mode)
    budget = batch_tokens or default_budget(compute.device.type)
    asked = {"dim": dim, "mode": mode}
    cut: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    # The prompts of several tasks are in the texts already; one task may have its own.
    at_task = {"task": tasks[0]} if len(tasks) == 1 and tasks[0] is not None else {}
    order = np.argsort([-len(text) for text in texts], kind="stable")
    place = np.empty(len(texts), dtype=np.int64)
    place[order] = np.arange(len(texts))
    rows = np.argsort(place[of_text], kind="stable")
    size = BLOCK_TEXTS if compute.device.type == "cpu" else BLOCK_TEXTS_ELSEWHERE
    begins = np.searchsorted(place[of_text[rows]], np.arange(0, len(texts) + size, size))
    tokenise = partial(that_pads(model).preprocess, prompt=prompt, **at_task, **cut)
    blocks = [
        [texts[i] for i in order[first : first + size]] for first in range(0, len(texts), size)
    ]
    kept_rows: Array | None = None

    def keep(batch: Array, vectors: Tensor) -> None:
        nonlocal kept_rows
        if kept_rows is None:
            kept_rows = np.empty((len(rows), vectors.shape[1]), dtype=np.float32)
        kept_rows[batch] = vectors.cpu().numpy()
        bar.update(len(batch))

    running: tuple[Array, Tensor] | None = None  # what a GPU computes while the next is made
    with (
        torch.inference_mode(),
        _bar(len(rows), show_progress_bar) as bar,
        closing(_ahead(tokenise, blocks, compute.device.type != "cpu")) as tokenised,
    ):
        for number, (begin, end) in enumerate(pairwise(begins)):
            features = next(tokenised)
            lengths = _lengths(features, blocks[number])
            left = not bool(features["attention_mask"][:, 0].all())
            chosen = rows[begin:end]
            places = place[of_text[chosen]] - number * size
            for batch in _batches(lengths[places], of_task[chosen], budget):
                own_lengths = lengths[places[batch]]
                width = int(own_lengths.max())
                part = take(features, torch.from_numpy(places[batch]), width, left)
                full = int(own_lengths.min()) == width
                called, counts = np.unique(of_task[chosen[batch]], return_counts=True)
                runs = [(tasks[i], int(n)) for i, n in zip(called, counts, strict=True)]
                with known_padding("none" if full else "left" if left else "right"):
                    vectors = compute(part, runs, cut)
                if running is not None:
                    keep(*running)
                running = chosen[batch], vectors.float()
        if running is not None:
            keep(*running)
    if kept_rows is None:
        none = torch.zeros(0, model.get_embedding_dimension() or 0)
        if cut:  # a wrong dim is told for no texts, too
            none = model[-1]({"sentence_embedding": none}, **cut)["sentence_embedding"]
        return none.numpy()
    return kept_rows


def _ahead(
    tokenise: Callable[[list[str]], dict[str, Any]], blocks: list[list[str]], thread: bool
) -> Generator[dict[str, Any], None, None]:
    """Each block's tokens; on a GPU, in a thread, the next block's while one is computed."""
    if not thread:
        yield from map(tokenise, blocks)
        return
    with ThreadPoolExecutor(1, "st_jv5-tokenise") as pool:
        waiting = deque(pool.submit(tokenise, block) for block in blocks[:AHEAD])
        for block in [*blocks[AHEAD:], *[None] * AHEAD]:
            if not waiting:
                return
            tokens = waiting.popleft().result()
            if block is not None:
                waiting.append(pool.submit(tokenise, block))
            yield tokens


def _bar(total: int, asked: bool | Progress) -> Any:
    if isinstance(asked, bool):
        return tqdm(total=total, unit="text", disable=not asked)
    return nullcontext(asked)


def _lengths(features: Mapping[str, Any], texts: Sequence[str]) -> Array:
    """Tokens of each text; an error for one that has none."""
    if "attention_mask" not in features:
        raise ValueError("this model's tokens have no attention_mask; encode with model.encode")
    lengths: Array = features["attention_mask"].sum(dim=1).numpy()
    if not lengths.all():
        raise ValueError(
            f"{texts[int(lengths.argmin())]!r} has no token and so no vector: there is no prompt, "
            f"and the tokenizer adds nothing of its own (append_eos)"
        )
    return lengths


def _batches(lengths: Array, of_task: Array, budget: int) -> Iterator[Array]:
    """Rows of each batch: those of one task, or of several small tasks one after the other."""
    tokens = np.bincount(of_task, weights=lengths)
    small = (tokens > 0) & (tokens <= SHARED_TOKENS)
    group = np.where(small[of_task], -1, of_task)
    for number in np.unique(group):
        rows = np.flatnonzero(group == number)
        rows = rows[np.argsort(of_task[rows], kind="stable")]
        for chunk in row_chunks(torch.from_numpy(lengths[rows]), budget):
            yield rows[chunk.numpy()]


def that_pads(model: SentenceTransformer) -> SentenceTransformer:
    """The model, with a ``preprocess`` that pads.

    Under flash attention it would put all texts of a block into one row. The model itself is left
    as it is, for other threads.
    """
    first: Any = model[0]
    if not getattr(first, "can_flatten_inputs", False):
        return model
    name = next(iter(model._modules))
    padding = sharing(first, can_flatten_inputs=False)
    return sharing(model, _modules={**model._modules, name: padding})
