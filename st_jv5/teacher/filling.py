"""Fill a store from a teacher."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, get_args

import numpy as np
from tqdm.auto import tqdm

from st_jv5.choices import Engine
from st_jv5.teacher.shard import Array, halves, hash_texts, shard_of
from st_jv5.teacher.shard_writer import check_width, fill_shard
from st_jv5.teacher.sources import as_teacher
from st_jv5.teacher.store import TeacherStore

logger = logging.getLogger(__name__)

CHUNK_TEXTS = 1024
"""Texts per write: what a kill loses at most."""
SECONDS_BETWEEN_LINES = 60.0
"""Where no bar is shown, a line tells how far it is, this often at most."""


def fill(
    store: TeacherStore,
    teacher: Any,
    texts: Sequence[str],
    *,
    batch_tokens: int | None = None,
    chunk_texts: int = CHUNK_TEXTS,
    engine: Engine = "local",
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> int:
    """Compute the vectors that are missing in a store, and write them.

    A run that was stopped continues when it is called again. Before anything is computed, the
    missing texts are sorted by their hashes and cut into chunks, shard by shard. A chunk is batched
    by tokens, and written when it is done, so Ctrl-C or a kill loses one chunk at most. A run that
    is resumed, or spread over processes, computes the same batches as one run that was never
    stopped: on the same kind of machine the store has the same bytes.

    Args:
        store: A space of a store; the teacher is run with its prompt and max_tokens.
        teacher: A SentenceTransformer, a :class:`LocalTeacher`, an :class:`EndpointTeacher`, or a
            function from a list of texts to vectors ``(n, dim)``.
        texts: Texts; repeats are computed once. Each text is read once to be hashed and once to be
            embedded, so the sequence may read its texts from a disk. If it has an attribute
            ``hashes`` (:func:`~st_jv5.teacher.shard.hash_texts`), texts are not read to be hashed.
        batch_tokens: Most padded tokens of a forward pass; None chooses by the device.
        chunk_texts: Texts of a chunk.
        engine: ``local`` computes in this process. ``ray`` computes in the workers of a Ray cluster
            (the running one, else a new one on this machine), each one shard at a time; the workers
            must be able to read and write the store's folder.
        workers: Number of Ray workers; None is one per GPU, or two on a cluster without GPUs.
        rank: Number of this process among ``world_size``, as ``torchrun`` counts; each process
            fills its own share of the shards.
        world_size: How many processes fill the store together.

    Returns:
        How many vectors were computed.

    Raises:
        ValueError: A vector has the wrong width, has a NaN or is zero (the message names the text);
            another process writes the same shard; there are more processes than shards.

    Example:
        >>> store = TeacherStore.open(folder, create=True).space("minilm", dim=384)
        >>> fill(store, teacher, ["a cat", "a dog", "a cat"])
        2
    """
    if engine not in get_args(Engine):
        raise ValueError(f"engine must be one of {', '.join(get_args(Engine))}, not {engine!r}")
    if chunk_texts < 1:
        raise ValueError(f"chunk_texts must be positive, not {chunk_texts}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in 0..{world_size - 1}, not {rank}")
    if max(world_size, workers or 1) > store.shards:
        raise ValueError(
            f"{max(world_size, workers or 1)} processes cannot fill {store.shards} shards at once; "
            f"start the space with more: .space(..., shards=)"
        )
    source = as_teacher(teacher)
    todo = [
        (number, part)
        for number, part in missing_by_shard(store, texts)
        if number % world_size == rank
    ]
    count = sum(map(len, (part for _, part in todo)))
    if not count:
        return 0
    if engine == "local":
        check_width(store, source)
    where = f" {rank + 1}/{world_size}" if world_size > 1 else ""
    begin, done = time.time(), 0
    said = begin
    how: dict[str, Any] = {}

    def told(more: int) -> None:
        nonlocal done, said
        done += more
        bar.update(more)
        now = time.time()
        if bar.disable and done and now - said >= SECONDS_BETWEEN_LINES:
            said = now
            left = (now - begin) / done * (count - done) / 60
            text = "teacher%s: %d of %d texts, about %.0f minutes left"
            logger.info(text, where, done, count, left)

    shown = {"desc": f"teacher{where}", "unit": "text", "smoothing": 0.1, "disable": None}
    with tqdm(total=count, **shown) as bar:  # on a terminal alone; elsewhere lines are logged
        try:
            if engine == "ray":
                from st_jv5.teacher.ray_engine import fill_shards

                how = fill_shards(store, source, todo, workers, batch_tokens, chunk_texts, told)
                _note_precision(store, how)
            else:
                how = source.describe()
                _note_precision(store, how)
                for number, part in todo:
                    fill_shard(store, source, number, part, batch_tokens, chunk_texts, told)
        finally:
            _record(store, how, done, time.time() - begin)
    return done


class Picked(Sequence[str]):
    """Some of many texts, by their places; each is looked up when it is asked for."""

    def __init__(self, texts: Sequence[str], places: Array, hashes: Array) -> None:
        self.texts, self.places, self.hashes = texts, places, hashes

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.texts[place] for place in self.places[index].tolist()]
        return self.texts[int(self.places[index])]


def missing_by_shard(store: TeacherStore, texts: Sequence[str]) -> Iterator[tuple[int, Picked]]:
    """The plan: per shard, the distinct texts that have no vector, in the order of their hashes."""
    hashes = hash_texts(texts)
    absent = np.flatnonzero(store.find(hashes) < 0)
    high, low = halves(hashes[absent])
    order = np.lexsort((low, high))
    high, low = high[order], low[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    chosen = absent[order[first]]
    numbers = shard_of(hashes[chosen], store.shards)
    bounds = np.searchsorted(numbers, np.arange(store.shards + 1)).tolist()
    for number, (begin, end) in enumerate(pairwise(bounds)):
        if end > begin:
            places = chosen[begin:end]
            yield number, Picked(texts, places, hashes[places])


# --------------------------------------------------------------------------- how it was filled


def _note_precision(store: TeacherStore, how: dict[str, Any]) -> None:
    now = how.get("forwards")
    before = {line["forwards"] for line in fills(store) if "forwards" in line} - {now}
    if now and before:
        logger.warning(
            "%s was filled by forwards in %s, and now in %s: its vectors differ by rounding",
            store.path,
            ", ".join(sorted(before)),
            now,
        )


def _record(store: TeacherStore, how: dict[str, Any], count: int, seconds: float) -> None:
    """Add a line to the space's ``fills.jsonl``."""
    if not count:
        return
    when = datetime.now(UTC).isoformat(timespec="seconds")
    line = {"when": when, "texts": count, "seconds": round(seconds, 1), **how}
    with (store.path / "fills.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def fills(store: TeacherStore) -> list[dict[str, Any]]:
    """Who filled the space, first to last."""
    path = store.path / "fills.jsonl"
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):  # a line that a killed process left half-written
            told = json.loads(line)
            if isinstance(told, dict):
                records.append(told)
    return records
