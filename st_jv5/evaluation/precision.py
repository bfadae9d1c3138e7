"""Vectors as an index stores them: what is left of a cosine at fewer bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sentence_transformers.util import quantize_embeddings

from st_jv5.tasks import unknown_name

Array = np.ndarray[Any, Any]

BITS: Mapping[str, int] = {
    "float32": 32,
    "float16": 16,
    "int8": 8,
    "binary": 1,
    "binary-rescored": 1,
}
"""Precision -> bits of one dimension. ``binary-rescored`` keeps documents as binary and ranks the
nearest of them anew by the query's float vector."""

PRECISIONS = tuple(BITS)


def check_precision(precision: str) -> None:
    """An error that lists the precisions, for one that is none of them."""
    if precision not in BITS:
        raise ValueError(unknown_name("precision", precision, BITS, "an index"))


def bytes_per_vector(dim: int, precision: str) -> int:
    """Bytes of one stored vector.

    Example:
        >>> [bytes_per_vector(256, precision) for precision in ("float32", "int8", "binary")]
        [1024, 256, 32]
    """
    check_precision(precision)
    return (dim * BITS[precision] + 7) // 8


def unit(vectors: Array) -> Array:
    """Rows of unit length; a zero row stays."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return vectors / np.maximum(lengths, 1e-12)[:, None]


def ranges_of(vectors: Array) -> Array:
    """Least and largest value of each dimension: float32 ``(2, dim)``, for int8.

    Example:
        >>> ranges_of(np.array([[0.6, 0.8], [1.0, 0.0]])).tolist()
        [[0.6000000238418579, 0.0], [1.0, 0.800000011920929]]
    """
    if len(vectors) < 2:
        raise ValueError(f"int8 ranges need at least 2 vectors, not {len(vectors)}")
    found: Array = np.stack([vectors.min(axis=0), vectors.max(axis=0)]).astype(np.float32)
    return found


def stored(vectors: Array, precision: str, ranges: Array | None = None) -> Array:
    """Write vectors at a precision and read them back.

    Differs from mteb's CompressionWrapper, which takes int8 ranges from the texts under test
    themselves, compares int8 codes without their zero point, and binary as 0 and 1.

    Args:
        vectors: ``(n, dim)`` unit rows.
        precision: One of :data:`PRECISIONS`. int8 takes the host's codes back to the middle of
            their steps. Binary keeps signs, so that the cosine of two rows is
            ``1 - 2 * hamming / dim``.
        ranges: ``(2, dim)``, for int8: :func:`ranges_of` other texts' vectors. Values beyond
            are clipped.

    Returns:
        float32 ``(n, dim)``, unit rows.

    Example:
        >>> stored(np.array([[0.5, -0.5, 0.1, 0.7]]), "binary").tolist()
        [[0.5, -0.5, 0.5, 0.5]]
    """
    check_precision(precision)
    if precision == "float32":
        return vectors.astype(np.float32, copy=False)
    if precision == "float16":
        return unit(torch.from_numpy(vectors).half().float().numpy())
    if precision == "int8":
        if ranges is None or ranges.shape != (2, vectors.shape[1]):
            shape = None if ranges is None else ranges.shape
            raise ValueError(f"int8 needs ranges of shape (2, {vectors.shape[1]}), not {shape}")
        codes = quantize_embeddings(vectors, "int8", ranges=ranges)
        low, high = ranges
        step = (high - low) / 255
        return unit(codes * step + (low + 128.5 * step))
    each = np.float32(1 / np.sqrt(vectors.shape[1]))
    signs: Array = np.multiply(vectors > 0, 2 * each, dtype=np.float32)
    return signs - each
