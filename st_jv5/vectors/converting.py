"""Turn a folder of the base's vectors into a task's, by the task's head: no text is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from st_jv5.adapters import router_of
from st_jv5.encoding import head_vectors
from st_jv5.files import whole_folder
from st_jv5.fingerprint import fingerprint
from st_jv5.modules.heads import HEAD, head_of, heads_of
from st_jv5.precision import Array, codes, from_codes, ranges_of
from st_jv5.task_table import BASE
from st_jv5.vectors.folder import VectorFolder
from st_jv5.vectors.searching import model_of

SAMPLED = 1000
"""Rows from all over the source that int8's ranges are taken from, about."""


def convert(
    source: str | Path | VectorFolder,
    task: str,
    folder: str | Path,
    *,
    model: str | SentenceTransformer | None = None,
) -> VectorFolder:
    """Turn stored vectors of the base into those of a task, without encoding any text.

    The result is what ``encode_corpus(..., mode="head")`` writes, up to the rounding of the source.
    :func:`search` encodes queries for such a folder by the head, too.

    Args:
        source: A complete folder of the base's vectors, at full width and not binary.
        task: Task or alias that has a head in the model (:func:`st_jv5.fit_heads`).
        folder: New folder; it is created when all is written, or not at all.
        model: The model, or its folder or Hub id, if it is not at the place that the folder of
            vectors names.

    Raises:
        ValueError: The source is not such a folder or was made by another model; its prompt is not
            one of the base's; shards are missing or damaged.

    Example:
        >>> convert(vectors_folder, "clustering", "elsewhere")
        Traceback (most recent call last):
        ValueError: ...vectors are of the task 'retrieval'; convert takes those of 'base'
    """
    found = source if isinstance(source, VectorFolder) else VectorFolder(source)
    told = found.manifest
    if told["task"] != BASE or told.get("mode") is not None:
        raise ValueError(
            f"{found.path}: its vectors are of the task {told['task']!r}; convert takes those of "
            f"{BASE!r}"
        )
    if found.precision == "binary":
        raise ValueError(f"{found.path}: binary vectors hold too little to be converted")
    if missing := found.missing():
        raise ValueError(f"{found.path}: {len(missing)} of {found.shards} shards are not written")
    loaded = model_of(found, model)
    name, width = head_of(loaded, task, HEAD), heads_of(loaded).dim
    if found.dim != width:
        raise ValueError(f"{found.path}: vectors of {found.dim} dims; a head takes all {width}")
    if told["prompt"] not in (known := router_of(loaded).prompts.values()):
        raise ValueError(
            f"{found.path}: its texts had the prompt {told['prompt']!r}, and heads are fitted to "
            f"{', '.join(map(repr, known))}"
        )
    manifest = {key: value for key, value in told.items() if key != "format"}
    manifest |= {"task": name, "mode": HEAD, "model_hash": fingerprint(loaded, heads=True)}

    def heads(kept: Array) -> Array:
        vectors = from_codes(np.asarray(kept), found.precision, found.dim, ranges=found.ranges)
        return head_vectors(loaded, vectors.astype(np.float32, copy=False), name)

    with whole_folder(folder) as partial:
        made = VectorFolder.create(partial, manifest)
        if found.precision == "int8":
            step = max(1, found.rows // SAMPLED)  # of rows, counted from the source's first
            drawn = [
                heads(kept[-number * found.shard_rows % step :: step])
                for number, _, kept in found.loaded()
            ]
            made.write_ranges(ranges_of(np.concatenate(drawn)))
        for number, ids, kept in found.loaded():
            made.write(number, ids, codes(heads(kept), made.precision, made.ranges))
    return VectorFolder(folder)
