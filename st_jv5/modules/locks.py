"""Locks that a fork leaves whole.

A process that forks while one of its threads holds a lock leaves the child a lock that nobody will
ever release. So a fork waits here until it holds all of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

STARTING, TOKENIZER, MERGING, ADAPTERS = range(4)
"""In this order a thread takes the locks of a model, where it takes several."""

_making = threading.Lock()
_order: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_held: list[Any] = []
_forgetful: WeakSet[Any] = WeakSet()


def forkable_lock(order: int) -> Any:
    """A reentrant lock.

    Args:
        order: One of :data:`STARTING` (an engine), :data:`TOKENIZER`,
            :data:`MERGING`, :data:`ADAPTERS`.
    """
    lock = threading.RLock()
    with _making:
        _order[lock] = order
    return lock


def forget_threads_after_fork(owner: Any) -> None:
    """Have ``owner.forget_threads()`` called in a child, which has one thread of its parent's."""
    with _making:
        _forgetful.add(owner)


def _before() -> None:
    _making.acquire()
    _held[:] = sorted(_order.keys(), key=lambda lock: _order[lock])
    for lock in _held:
        lock.acquire()


def _after() -> None:
    for lock in reversed(_held):
        lock.release()
    _held.clear()
    _making.release()


def _in_child() -> None:
    for owner in list(_forgetful):
        owner.forget_threads()
    _after()


_at_fork: Callable[..., None] | None = getattr(os, "register_at_fork", None)
if _at_fork is not None:  # Windows has no fork
    _at_fork(before=_before, after_in_parent=_after, after_in_child=_in_child)
