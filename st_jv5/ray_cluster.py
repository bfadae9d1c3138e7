"""What the Ray engines share: the running cluster or one of this machine, and a worker's share."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def cluster() -> Iterator[Any]:
    """``ray``, connected; a cluster that was started for the block ends with it."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError('engine="ray" needs: pip install "st-jv5[ray]"') from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def worker_needs(ray: Any, workers: int | None, most: int) -> tuple[int, dict[str, float]]:
    """How many workers, and what each asks of the cluster: a GPU, or its share of the cores."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    count = min(workers or gpus or 2, most)
    if gpus:
        return count, {"num_gpus": min(1.0, gpus / count)}
    cpus = resources.get("CPU", 1) / count
    return count, {"num_cpus": float(math.floor(cpus)) if cpus > 1 else cpus}
