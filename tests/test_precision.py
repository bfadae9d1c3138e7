"""Vectors as an index stores them, against numpy written from the definitions."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings

from st_jv5.evaluation import bytes_per_vector, ranges_of, stored


@pytest.fixture
def rows() -> np.ndarray:
    found = np.random.default_rng(0).standard_normal((40, 24)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_binary_cosines_rank_as_hamming_distances_of_the_hosts_bits(rows):
    packed = quantize_embeddings(rows, "ubinary")
    bits = np.unpackbits(packed, axis=1)
    hamming = (bits[:, None, :] != bits[None, :, :]).sum(axis=2)
    kept = stored(rows, "binary")
    np.testing.assert_allclose(kept @ kept.T, 1 - 2 * hamming / 24, atol=1e-6)
    assert packed.shape[1] == bytes_per_vector(24, "binary") == 3


def test_int8_keeps_each_value_within_half_a_step(rows):
    ranges = ranges_of(rows)
    kept = stored(rows, "int8", ranges)
    steps = (ranges[1] - ranges[0]) / 255
    exact = rows.astype(np.float64)
    # Read back before it is normalised: within half a step, the largest value within a whole one.
    codes = quantize_embeddings(rows, "int8", ranges=ranges).astype(np.float64)
    read = ranges[0] + (codes + 128.5) * steps
    assert (np.abs(read - exact) <= 0.5001 * steps).all()
    expected = read / np.linalg.norm(read, axis=1, keepdims=True)
    np.testing.assert_allclose(kept, expected, atol=1e-6)


def test_int8_clips_what_the_ranges_do_not_hold(rows):
    narrow = ranges_of(rows) / 2
    kept = stored(rows, "int8", narrow)
    clipped = np.clip(rows, *narrow)
    clipped /= np.linalg.norm(clipped, axis=1, keepdims=True)
    np.testing.assert_allclose(kept, clipped, atol=0.01)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary", "binary-rescored"])
def test_what_is_read_back_has_unit_length(rows, precision):
    kept = stored(rows, precision, ranges_of(rows) if precision == "int8" else None)
    assert kept.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(kept, axis=1), 1, atol=1e-6)
    nearest = {"float32": 0, "float16": 1e-3, "int8": 0.02}.get(precision)
    if nearest is not None:
        np.testing.assert_allclose(kept, rows, atol=nearest)


def test_bytes_are_those_of_the_arrays(rows):
    assert bytes_per_vector(24, "float32") == rows[0].nbytes
    assert bytes_per_vector(24, "float16") == rows[0].astype(np.float16).nbytes
    assert bytes_per_vector(24, "int8") == 24
    assert bytes_per_vector(20, "binary") == 3  # whole bytes


def test_bad_input_is_named(rows):
    with pytest.raises(ValueError, match=r"unknown precision 'int9'; .*did you mean 'int8'"):
        stored(rows, "int9")
    with pytest.raises(ValueError, match=r"needs ranges of shape \(2, 24\), not \(2, 12\)"):
        stored(rows, "int8", ranges_of(rows[:, :12]))
    with pytest.raises(ValueError, match=r"needs ranges of shape \(2, 24\), not None"):
        stored(rows, "int8")
    with pytest.raises(ValueError, match="at least 2 vectors, not 1"):
        ranges_of(rows[:1])
