"""Vectors as an answer's bytes."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from pydantic_core import to_json

from st_jv5.precision import Array, codes, unit
from st_jv5.serve.wire import Kind


def written(vectors: Array, kind: Kind) -> list[Any]:
    """Each row of ``(n, dim)`` in JSON: numbers, or base64 of float32."""
    if kind == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    if kind == "float":
        return list(vectors.tolist())
    bits = codes(vectors, "binary")
    if kind == "binary":  # sentence-transformers' and Jina's int8: the same bytes, 128 lower
        bits = (bits.astype(np.int16) - 128).astype(np.int8)
    return list(bits.tolist())


def cut(vectors: Array, dim: int | None) -> Array:
    """The first ``dim`` of each row, at unit length."""
    return vectors if dim in (None, vectors.shape[1]) else unit(vectors[:, :dim])


def openai_answer(vectors: Array, dim: int | None, kind: Kind, model: str, tokens: int) -> bytes:
    """Answer of ``/v1/embeddings``."""
    rows = written(cut(vectors, dim), kind)
    return to_json(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": row}
                for index, row in enumerate(rows)
            ],
            "model": model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def tei_answer(vectors: Array, dim: int | None) -> bytes:
    """Answer of ``/embed``."""
    return to_json(written(cut(vectors, dim), "float"))
