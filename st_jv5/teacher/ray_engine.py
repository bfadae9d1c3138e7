"""Fill a store through Ray Data: a shard is a block, a worker fills one shard at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from st_jv5.machine.ray_cluster import cluster, results, watched, worker_needs
from st_jv5.teacher.shard_writer import check_width, fill_shard
from st_jv5.teacher.sources import Teacher
from st_jv5.teacher.store import TeacherStore


def fill_shards(
    store: TeacherStore,
    source: Teacher,
    todo: Sequence[tuple[int, Sequence[str]]],
    workers: int | None,
    batch_tokens: int | None,
    chunk_texts: int,
    told: Callable[[int], None],
) -> dict[str, Any]:
    """Fill the shards of a plan; a worker that dies is started again and continues with its shard.

    Returns:
        How the workers compute, as their teacher describes it.

    Raises:
        ValueError: As :func:`~st_jv5.teacher.filling.fill_shard`, from whichever worker.
    """
    store = TeacherStore(store.folder.resolve(), store.key)  # a worker's folder is another
    with cluster() as ray:
        count, needs = worker_needs(ray, workers, len(todo))
        blocks: Any = [
            ray.put(
                pa.table(
                    {
                        "shard": pa.array([number] * len(texts), pa.int64()),
                        "text": pa.array(texts[:], pa.large_string()),
                    }
                )
            )
            for number, texts in todo
        ]
        filled = ray.data.from_arrow_refs(blocks).map_batches(
            _Filler,
            fn_constructor_args=(store, source, batch_tokens, chunk_texts),
            batch_size=None,  # a whole block: one writer per shard
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=count),
            **needs,
        )
        how: dict[str, Any] = {}
        seen = len(store)

        def look() -> None:
            nonlocal seen
            now = len(store)
            told(now - seen)
            seen = now

        with watched(look):
            for row in results(filled):
                how = json.loads(row["how"])
        return how


class _Filler:
    """A worker: has the teacher, fills the shards it is handed."""

    def __init__(
        self, store: TeacherStore, source: Teacher, batch_tokens: int | None, chunk_texts: int
    ) -> None:
        self.store, self.source = store, source
        self.batch_tokens, self.chunk_texts = batch_tokens, chunk_texts

    def __call__(self, block: Any) -> dict[str, list[Any]]:
        (number,) = set(block["shard"].to_pylist())
        texts, error = block["text"].to_pylist(), ""
        try:
            check_width(self.store, self.source)
            fill_shard(
                self.store,
                self.source,
                number,
                texts,
                self.batch_tokens,
                self.chunk_texts,
                lambda count: None,
            )
        except ValueError as found:
            error = str(found)  # Ray would bury it in its own
        return {"how": [json.dumps(self.source.describe())], "error": [error]}
