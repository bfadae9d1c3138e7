"""Fill one shard of a store: what every worker does, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from st_jv5.teacher.shard import Array, hash_texts
from st_jv5.teacher.sources import Teacher
from st_jv5.teacher.store import TeacherStore

LOCK_SECONDS = 10.0
"""How long a shard is waited for: a worker that was killed may still be dying."""


def check_width(store: TeacherStore, source: Teacher) -> None:
    """An error if the teacher's vectors do not fit the space."""
    if (width := source.dim()) != store.dim:
        raise ValueError(f"the teacher gives {width} dims, but the space has {store.dim}")


def fill_shard(
    store: TeacherStore,
    source: Teacher,
    number: int,
    texts: Sequence[str],
    batch_tokens: int | None,
    chunk_texts: int,
    told: Callable[[int], Any],
) -> int:
    """Fill one shard with texts of a plan, as its only writer; report each chunk."""
    space = store.key
    assert space is not None
    done = 0
    with store.writing(number, LOCK_SECONDS) as shard:
        hashes = hash_texts(texts)
        left = np.flatnonzero(shard.find(hashes) < 0)  # another try may have got this far
        for begin in range(0, len(left), chunk_texts):
            rows = left[begin : begin + chunk_texts]
            chunk = [texts[row] for row in rows]
            vectors: Array = source.embed(chunk, space, batch_tokens)
            shard.append(hashes[rows], store.checked(chunk, vectors))
            shard.refresh()
            done += len(chunk)
            told(len(chunk))
    return done
