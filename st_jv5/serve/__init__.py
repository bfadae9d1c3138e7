"""A model behind HTTP: ``st-jv5 serve MODEL``, or ``create_app`` of ``st_jv5.serve.app``."""

from st_jv5.serve.limits import Limits

__all__ = ["Limits"]
