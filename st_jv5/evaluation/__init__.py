"""Evaluation: a model as an mteb encoder."""

from st_jv5.evaluation.mteb_encoder import ADAPTER_OF_TYPE, MTEBEncoder

__all__ = ["ADAPTER_OF_TYPE", "MTEBEncoder"]
