"""Which tasks to evaluate on: mteb's and the local ones, by name, benchmark, type and language."""

from __future__ import annotations

from collections.abc import Sequence

import mteb
from mteb.abstasks import AbsTask

from st_jv5.evaluation.local_tasks import local_tasks
from st_jv5.evaluation.mteb_encoder import ADAPTER_OF_TYPE, adapter_for
from st_jv5.evaluation.own_tasks import NOT_KNOWN
from st_jv5.task_table import unknown_name


def choose_tasks(
    names: Sequence[str],
    benchmarks: Sequence[str],
    local: str,
    *,
    own: Sequence[AbsTask] = (),
    types: Sequence[str] = (),
    languages: Sequence[str] = (),
) -> list[AbsTask]:
    """Tasks by name and benchmark, the local ones by name or all of them, and those of own files.

    Args:
        names: Names of mteb's tasks and of the local ones.
        benchmarks: Names of mteb's benchmarks.
        local: All local tasks over this split, ``test`` or ``validation``; empty: none.
        own: Tasks of your own rows; they come last.
        types: Keep these task types alone.
        languages: ISO 639-3 codes; keep tasks all of whose languages are among them, and those of
            your own rows, whose language is not known.
    """
    for kind in types:
        if kind not in ADAPTER_OF_TYPE:
            raise ValueError(unknown_name("task type", kind, ADAPTER_OF_TYPE, "mteb"))
    tasks = [task() for task in local_tasks(local).values()] if local else []
    known = {**local_tasks("test"), **local_tasks("validation")}
    for name in names:
        if name in known:
            tasks.append(known[name]())
        else:
            try:
                tasks.append(mteb.get_task(name))
            except KeyError as error:
                told = unknown_name("task", name, local_tasks(), "st_jv5")
                raise ValueError(f"{told}; mteb says: {_words(error)}") from error
    for name in benchmarks:
        try:
            tasks.extend(mteb.get_benchmark(name).tasks)
        except KeyError as error:
            raise ValueError(f"no benchmark {name!r}; mteb says: {_words(error)}") from error
    tasks = list({task.metadata.name: task for task in [*tasks, *own]}.values())
    for task in tasks:
        try:
            adapter_for(task.metadata.type, task.metadata.modalities)
        except ValueError as error:
            raise ValueError(f"{task.metadata.name}: {error}") from error
    if not tasks:
        raise ValueError(
            "nothing to run: name --tasks, a --benchmark, files of your --own, or --local"
        )
    kept = [
        task
        for task in tasks
        if (not types or task.metadata.type in types)
        and (not languages or set(task.metadata.languages) <= {*languages, NOT_KNOWN})
    ]
    if not kept:
        found = sorted({language for task in tasks for language in task.metadata.languages})
        raise ValueError(
            f"no task is left of {len(tasks)} by --types {' '.join(types) or '(all)'} and "
            f"--languages {' '.join(languages) or '(all)'}; their languages: {', '.join(found)}"
        )
    return kept


def _words(error: KeyError) -> str:
    """What a KeyError says, which quotes its words."""
    return str(error.args[0]).removeprefix("KeyError: ")
