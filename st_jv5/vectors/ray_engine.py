"""Encode a corpus through Ray Data: a run of shards is a row, a worker computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm

from st_jv5.encoding import Progress
from st_jv5.machine.ray_cluster import cluster, results, watched, worker_needs
from st_jv5.vectors.folder import VectorFolder
from st_jv5.vectors.work import Work

RUNS_PER_WORKER = 4
"""Runs of shards per worker: more balance the load, and read the source once more each."""


def write_shards(work: Work, todo: Sequence[int], workers: int | None, bar: Progress) -> None:
    """Compute the shards of a folder; a worker that dies is started again with its run.

    Raises:
        ValueError: From whichever worker.
    """
    if not todo:
        return
    folder = VectorFolder(work.folder)
    work = work.from_anywhere()
    with cluster() as ray:
        count, needs = worker_needs(ray, workers, len(todo))
        size = -(-len(todo) // (count * RUNS_PER_WORKER))
        runs = [list(todo[begin : begin + size]) for begin in range(0, len(todo), size)]
        written = ray.data.from_items([{"shards": run} for run in runs]).map(
            _Writer,
            fn_constructor_args=(work,),
            compute=ray.data.ActorPoolStrategy(size=min(count, len(runs))),
            **needs,
        )
        waiting = list(todo)

        def look() -> None:
            for number in [n for n in waiting if folder.is_written(n)]:
                waiting.remove(number)
                bar.update(folder.rows_of(number))

        with watched(look):
            for _ in results(written):
                pass


class _Writer:
    """A worker: has the model, writes the shards it is handed."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        missing = set(VectorFolder(self.work.folder).missing())  # another try may have got further
        try:
            numbers = [int(n) for n in row["shards"] if int(n) in missing]
            if numbers:
                self.work.run(numbers, tqdm(disable=True))
        except ValueError as error:
            return {"error": str(error)}  # Ray would bury it in its own
        return {"error": ""}
