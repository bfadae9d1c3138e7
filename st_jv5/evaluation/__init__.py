"""Evaluation: a model as an mteb encoder, and vectors at the precisions of an index."""

try:
    from st_jv5.evaluation.mteb_encoder import ADAPTER_OF_TYPE, MTEBEncoder
except ModuleNotFoundError as error:
    if error.name != "mteb":
        raise
    raise ImportError('st_jv5.evaluation needs mteb: pip install "st-jv5[eval]"') from error
from st_jv5.choices import PRECISIONS
from st_jv5.precision import bytes_per_vector, ranges_of, stored

__all__ = [
    "ADAPTER_OF_TYPE",
    "MTEBEncoder",
    "PRECISIONS",
    "bytes_per_vector",
    "ranges_of",
    "stored",
]
