"""An HTTP server for a model: ``st-jv5 serve MODEL``, or ``create_app`` in ``st_jv5.serve.app``."""

from st_jv5.serve.limits import Limits

__all__ = ["Limits"]
