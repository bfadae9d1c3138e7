"""Vectors as an index stores them: what is left of a cosine at fewer bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from st_jv5.task_table import unknown_name

Array = np.ndarray[Any, Any]

BITS: Mapping[str, int] = {
    "float32": 32,
    "float16": 16,
    "int8": 8,
    "binary": 1,
    "binary-rescored": 1,
}
"""Precision -> bits of one dimension."""


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


def codes(vectors: Array, precision: str, ranges: Array | None = None) -> Array:
    """What is kept of vectors at a precision.

    Args:
        vectors: ``(n, dim)`` unit rows.
        precision: One of :data:`st_jv5.choices.PRECISIONS`.
        ranges: ``(2, dim)``, for int8: :func:`ranges_of` other texts' vectors. Values beyond
            are clipped.

    Returns:
        ``(n, dim)`` float32, float16 or int8 (sentence-transformers' codes); for binary uint8
        ``(n, ceil(dim / 8))``, a bit per sign, the first dim highest.

    Example:
        >>> codes(np.array([[0.5, -0.5, 0.1, 0.7]]), "binary").tolist()
        [[176]]
    """
    check_precision(precision)
    if precision == "float32":
        return vectors.astype(np.float32, copy=False)
    if precision == "float16":
        import torch  # slow to import; several times as fast as numpy here

        return torch.from_numpy(vectors).half().numpy()
    if precision == "int8":
        from sentence_transformers.util import quantize_embeddings

        _check_ranges(ranges, vectors.shape[1])
        found: Array = quantize_embeddings(vectors, "int8", ranges=ranges)
        return found
    return np.packbits(vectors > 0, axis=1)


def from_codes(kept: Array, precision: str, dim: int, *, ranges: Array | None = None) -> Array:
    """Vectors out of :func:`codes`: float32 ``(n, dim)``, unit rows.

    int8 codes are taken back to the middle of their steps; a sign becomes plus or minus
    ``1 / sqrt(dim)``, so that the cosine of two binary rows is ``1 - 2 * hamming / dim``.

    Example:
        >>> from_codes(np.array([[176]], dtype=np.uint8), "binary", 4).tolist()
        [[0.5, -0.5, 0.5, 0.5]]
    """
    check_precision(precision)
    if precision == "float32":
        return kept
    if precision == "float16":
        return unit(kept.astype(np.float32))
    if precision == "int8":
        low, high = _check_ranges(ranges, dim)
        step = (high - low) / 255
        return unit(kept * step + (low + 128.5 * step))
    return _signs(np.unpackbits(kept, axis=1, count=dim).view(bool))


def stored(vectors: Array, precision: str, ranges: Array | None = None) -> Array:
    """Write vectors at a precision and read them back: :func:`codes`, then :func:`from_codes`.

    Differs from mteb's CompressionWrapper, which takes int8 ranges from the texts under test
    themselves, compares int8 codes without their zero point, and binary as 0 and 1.

    Example:
        >>> stored(np.array([[0.5, -0.5, 0.1, 0.7]]), "binary").tolist()
        [[0.5, -0.5, 0.5, 0.5]]
    """
    if BITS.get(precision) == 1:
        return _signs(vectors > 0)  # the same without packing
    return from_codes(codes(vectors, precision, ranges), precision, vectors.shape[1], ranges=ranges)


def _check_ranges(ranges: Array | None, dim: int) -> Array:
    if ranges is None or ranges.shape != (2, dim):
        shape = None if ranges is None else ranges.shape
        raise ValueError(f"int8 needs ranges of shape (2, {dim}), not {shape}")
    return ranges


def _signs(positive: Array) -> Array:
    each = np.float32(1 / np.sqrt(positive.shape[1]))
    signs: Array = np.multiply(positive, 2 * each, dtype=np.float32)
    return signs - each
