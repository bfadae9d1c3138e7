"""Settings that are one of a few words, and their defaults: the command line imports no more."""

from __future__ import annotations

from typing import Literal, get_args

Engine = Literal["local", "ray"]
"""Who computes: processes of this machine, or the workers of a Ray cluster."""

VectorFiles = Literal["parquet", "npy"]
"""What a shard of vectors on disk is."""

Precision = Literal["float32", "float16", "int8", "binary", "binary-rescored"]
"""How an index stores vectors. ``binary-rescored`` keeps documents as binary and ranks the nearest
of them again by the query's float vector."""

PRECISIONS = get_args(Precision)

EXPORTS = ("merged", "onnx", "openvino", "gguf")
"""What a task is exported to."""

ENGINES = ("torch", "bfloat16", "onnx", "onnx-int8", "openvino", "openvino-int8")
"""What computes vectors: torch, as the model is or in bfloat16, or on a CPU a graph."""

AUTO = "auto"
"""The engine that ``st-jv5 doctor`` chose."""

DTYPES = ("float32", "float16", "bfloat16")
"""Dtypes of weights that are loaded."""

SHARD_ROWS = 4096
"""Rows of a shard of vectors on disk: what a kill loses at most, per process."""

STAGES = ("teacher", "stage1", "adapters", "model", "evaluation", "report")
"""What a recipe does, in its order."""
