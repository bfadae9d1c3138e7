"""The adapters of one backbone: which there are, and which forwards are using them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from st_jv5.modules.locks import ADAPTERS, TOKENIZER, forget_threads_after_fork, forkable_lock
from st_jv5.task_table import Task

T = TypeVar("T")


class Registry:
    """Shared by all routers of a backbone, and by all threads that encode with them.

    Attributes:
        tasks: Name -> task of each adapter that is ready. Replaced as a whole, never changed: who
            reads it needs no lock.
        changing: Held while layers gain or lose adapters, and while modules are walked through.
        tokenizing: Held while the tokenizer works: a fast one keeps its truncation in shared state.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self._set_locks()

    def _set_locks(self) -> None:
        self.changing = forkable_lock(ADAPTERS)
        self.tokenizing = forkable_lock(TOKENIZER)
        self._left = threading.Condition(self.changing)
        self._running: Counter[str] = Counter()
        forget_threads_after_fork(self)

    # A lock cannot be pickled or copied.
    def __getstate__(self) -> dict[str, Any]:
        return {"tasks": self.tasks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_locks()

    def add(self, task: Task) -> None:
        """The adapter is ready."""
        self.tasks = {**self.tasks, task.name: task}

    def remove(self, name: str) -> None:
        """No further forward gets the adapter; returns when the last that has it is done."""
        with self.changing:
            self.tasks = {other: task for other, task in self.tasks.items() if other != name}
            self._left.wait_for(lambda: not self._running[name])

    @contextmanager
    def using(self, resolve: Callable[[], T], names: Callable[[T], Iterable[str]]) -> Iterator[T]:
        """Inside the block the adapters that ``resolve`` found stay what they are."""
        with self.changing:
            found = resolve()
            used = list(names(found))
            self._running.update(used)
        try:
            yield found
        finally:
            with self.changing:
                self._running.subtract(used)
                self._left.notify_all()

    def forget_threads(self) -> None:
        """Called in a child after a fork: no forward of its parent's threads will end there."""
        self._running.clear()
