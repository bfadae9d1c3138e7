"""What a command prints: lines of its own; bars on a terminal alone, and no notes for programs."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block transformers, datasets and sentence-transformers say what concerns users."""
    import datasets
    from transformers.utils import logging as transformers

    notes = logging.getLogger("sentence_transformers.base.model")
    loading, reading = transformers.is_progress_bar_enabled(), datasets.is_progress_bar_enabled()
    notes.addFilter(_is_for_users)
    transformers.disable_progress_bar()  # "Loading weights" takes a moment
    if not shows_bars():
        datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # sentence-transformers uses what transformers calls by another name now.
            message = ".*gradient_checkpointing.* is deprecated"
            warnings.filterwarnings("ignore", message, FutureWarning)
            yield
    finally:
        notes.removeFilter(_is_for_users)
        if loading:
            transformers.enable_progress_bar()
        if reading:
            datasets.enable_progress_bars()


def shows_bars() -> bool:
    """Whether someone watches: in a log a bar is a line for each of its steps."""
    return sys.stderr.isatty()


def _is_for_users(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Default prompt name is set")
