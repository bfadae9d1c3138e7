"""Evaluation: a model as an mteb encoder, and vectors as an index stores them."""

from st_jv5.evaluation.mteb_encoder import ADAPTER_OF_TYPE, MTEBEncoder
from st_jv5.precision import PRECISIONS, bytes_per_vector, ranges_of, stored

__all__ = [
    "ADAPTER_OF_TYPE",
    "MTEBEncoder",
    "PRECISIONS",
    "bytes_per_vector",
    "ranges_of",
    "stored",
]
