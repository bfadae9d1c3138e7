"""What the Ray engines share: the running cluster or one of this machine, and a worker's share."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

POLL_SECONDS = 1.0


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


@contextmanager
def watched(look: Callable[[], None]) -> Iterator[None]:
    """Call ``look`` every second while the block runs, and once after: for a progress bar."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            look()

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()
        look()


def results(rows: Any) -> Iterator[dict[str, Any]]:
    """The rows of a data set whose workers put what went wrong into ``error``.

    Raises:
        ValueError: The first that is not empty; Ray would bury an exception in its own.
    """
    for row in rows.iter_rows():
        if row["error"]:
            raise ValueError(row["error"])
        yield row
