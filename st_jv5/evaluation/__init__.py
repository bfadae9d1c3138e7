"""Evaluation: a model as an mteb encoder, and vectors at the precisions of an index.

mteb is imported when a name that needs it is first used: the local corpora and the plots do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st_jv5.choices import PRECISIONS
from st_jv5.precision import bytes_per_vector, ranges_of, stored

if TYPE_CHECKING:
    from st_jv5.evaluation.mteb_encoder import ADAPTER_OF_TYPE, MTEBEncoder

__all__ = [
    "ADAPTER_OF_TYPE",
    "MTEBEncoder",
    "PRECISIONS",
    "bytes_per_vector",
    "ranges_of",
    "stored",
]


def __getattr__(name: str) -> Any:
    if name not in ("ADAPTER_OF_TYPE", "MTEBEncoder"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from st_jv5.evaluation import mteb_encoder
    except ModuleNotFoundError as error:
        if error.name != "mteb":
            raise
        raise ImportError('st_jv5.evaluation needs mteb: pip install "st-jv5[eval]"') from error
    return getattr(mteb_encoder, name)
