"""The nearest vectors of a folder, shard by shard: exact, in constant memory, without an index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from st_jv5.encoding import encode
from st_jv5.fingerprint import fingerprint
from st_jv5.jina import load_model
from st_jv5.modules.adapter_router import AdapterRouter
from st_jv5.precision import Array, from_codes
from st_jv5.vectors.folder import VectorFolder

RESCORED = 10
"""Binary vectors: so many times ``k`` are taken by Hamming distance, and ranked again."""


@dataclass(frozen=True)
class Hit:
    """A result of :func:`search`.

    Example:
        >>> Hit(id="n7", row=7, score=0.5).id
        'n7'
    """

    id: Any
    row: int
    """Row in the corpus, counted from 0."""
    score: float
    """Cosine of the query with the stored vector."""


def search(
    folder: str | Path | VectorFolder,
    queries: Sequence[str],
    *,
    k: int = 10,
    model: str | SentenceTransformer | None = None,
) -> list[list[Hit]]:
    """The ``k`` nearest rows of each query, nearest first.

    If the folder's task is retrieval, queries get the query prompt; otherwise they get the prompt
    of the folder's texts. int8 and float16 vectors are turned into float32 first. Binary vectors
    are compared by Hamming distance; the nearest are then ranked by the cosine of the query's float
    vector with their signs.

    Args:
        folder: A folder that :func:`encode_corpus` wrote; shards that are not written yet are left
            out.
        queries: Texts.
        k: Hits per query.
        model: The model, or its folder or Hub id, if it is not at the place that ``folder`` names.

    Raises:
        ValueError: The model is not the one that wrote the folder, or is not found; no shard is
            written, or one is damaged; the vector of a query is not finite.

    Example:
        >>> [len(hits) for hits in search(vectors_folder, ["Athens", "music"], k=3)]
        [3, 3]
    """
    if k < 1:
        raise ValueError(f"k must be positive, not {k}")
    if not isinstance(folder, VectorFolder):
        folder = VectorFolder(folder)
    vectors = query_vectors(folder, queries, model)
    best: list[list[tuple[float, int, Any]]] = [[] for _ in queries]
    seen = False
    for number, ids, kept in folder.loaded():
        seen = True
        first = number * folder.shard_rows
        for query, (rows, scores) in enumerate(_nearest(folder, kept, vectors, k)):
            found = zip((-scores).tolist(), (first + rows).tolist(), strict=True)
            best[query] += [(score, row, ids[row - first]) for score, row in found]
            best[query] = sorted(best[query], key=lambda hit: hit[:2])[:k]
    if not seen:
        raise ValueError(f"{folder.path} has no shard yet; run st-jv5 encode to its end")
    return [[Hit(one, row, -score) for score, row, one in hits] for hits in best]


def query_vectors(
    folder: VectorFolder, queries: Sequence[str], model: str | SentenceTransformer | None
) -> Array:
    """float32 ``(n, dim)``, by the model and the task that the folder was made with."""
    manifest = folder.manifest
    loaded = model_of(folder, model)
    task, prompt, mode = manifest["task"], manifest["prompt"], manifest.get("mode")
    router = loaded[0]
    if isinstance(router, AdapterRouter):
        known = router.tasks.get(task)
        if known is not None and "query" in known.aliases:
            prompt_of = router.head_prompt if mode else router.prompt_for
            prompt = prompt_of("query", None) or ""
    elif "query" in loaded.prompts:
        prompt = loaded.prompts["query"]
    dim = folder.dim if isinstance(router, AdapterRouter) else None
    return encode(loaded, queries, task=task or None, prompt=prompt, dim=dim, mode=mode)


def model_of(folder: VectorFolder, model: str | SentenceTransformer | None) -> SentenceTransformer:
    """The model that a folder was made with: where the folder says it is, or the one given."""
    manifest, loaded = folder.manifest, model
    if loaded is None and _is_gone(manifest["model"]):
        raise ValueError(
            f"{folder.path} was made by the model in {manifest['model']}, and seen from here there "
            f"is no such folder; say where it is now with --model (model=)"
        )
    if not isinstance(loaded, SentenceTransformer):
        loaded = load_model(
            loaded or manifest["model"], manifest["revision"], dtype=manifest["dtype"]
        )
    heads = manifest.get("mode") is not None
    if (found := fingerprint(loaded, heads=heads)) != manifest["model_hash"]:
        raise ValueError(
            f"{folder.path} was made by {manifest['model']} ({manifest['model_hash']}), not by "
            f"this model ({found}); name the right one with --model, or encode again"
        )
    return loaded


def _is_gone(model: str) -> bool:
    """Whether a model is a folder that is not there; a Hub id has at most one slash, no dots."""
    is_path = model.count("/") > 1 or "\\" in model or model.startswith((".", "/", "~"))
    return is_path and not Path(model).exists()


def _nearest(
    folder: VectorFolder, kept: Array, queries: Array, k: int
) -> list[tuple[Array, Array]]:
    """Rows and cosines of the nearest of a shard, per query."""
    try:
        from usearch.index import MetricKind
        from usearch.index import search as exact
    except ImportError as error:
        raise ValueError('searching needs: pip install "st-jv5[search]"') from error
    binary = folder.precision == "binary"
    if binary:
        signs = np.packbits(queries > 0, axis=1)
        k = min(k * RESCORED, len(kept))
        coarse = exact(np.ascontiguousarray(kept), signs, k, MetricKind.Hamming, exact=True)
        found = []
        for query, keys in zip(queries, np.atleast_2d(coarse.keys).astype(np.int64), strict=True):
            found.append((keys, from_codes(kept[keys], "binary", folder.dim) @ query))
        return found
    vectors = from_codes(kept, folder.precision, folder.dim, ranges=folder.ranges)
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    hits = exact(vectors, queries, min(k, len(vectors)), MetricKind.IP, exact=True)
    keys, apart = np.atleast_2d(hits.keys), np.atleast_2d(hits.distances)
    return [(rows.astype(np.int64), 1 - each) for rows, each in zip(keys, apart, strict=True)]
