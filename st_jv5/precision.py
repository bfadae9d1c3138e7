"""Vectors at the precisions of an index: float32, float16, int8 and binary."""

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
"""Precision -> bits per dimension. ``binary-rescored`` stores documents as binary, and ranks the
nearest of them again by the query's float vector."""


def check_precision(precision: str) -> None:
    """An error that lists the precisions, for one that is none of them."""
    if precision not in BITS:
        raise ValueError(unknown_name("precision", precision, BITS, "an index"))


def bytes_per_vector(dim: int, precision: str) -> int:
    """Number of bytes of one stored vector.

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
    """Smallest and largest value of each dimension: float32 ``(2, dim)``, needed for int8.

    Example:
        >>> ranges_of(np.array([[0.6, 0.8], [1.0, 0.0]])).tolist()
        [[0.6000000238418579, 0.0], [1.0, 0.800000011920929]]
    """
    if len(vectors) < 2:
        raise ValueError(f"int8 ranges need at least 2 vectors, not {len(vectors)}")
    found: Array = np.stack([vectors.min(axis=0), vectors.max(axis=0)]).astype(np.float32)
    return found


def codes(vectors: Array, precision: str, ranges: Array | None = None) -> Array:
    """Encode vectors at a precision, as an index stores them.

    Args:
        vectors: ``(n, dim)`` unit rows.
        precision: One of :data:`st_jv5.choices.PRECISIONS`.
        ranges: ``(2, dim)``, for int8: the result of :func:`ranges_of` for the vectors of other
            texts. Values outside are clipped.

    Returns:
        ``(n, dim)`` float32, float16 or int8 (as sentence-transformers encodes it). For binary,
        uint8 ``(n, ceil(dim / 8))``: one bit per sign, the first dim in the highest bit.

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
    """Read back what :func:`codes` returned: float32 ``(n, dim)``, unit rows.

    An int8 code becomes the middle of its range of values. A sign becomes plus or minus ``1 /
    sqrt(dim)``, so the cosine of two binary rows is ``1 - 2 * hamming / dim``.

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

    It differs from mteb's CompressionWrapper, which takes int8 ranges from the texts under test,
    compares int8 codes without their zero point, and compares binary vectors as zeros and ones.

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
