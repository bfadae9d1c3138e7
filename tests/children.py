"""What a test's child process runs; a module of its own, so that a fork server loads it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def logged(log: Path, work: Callable[..., object], *arguments: Any) -> None:
    """Do the work; what it prints, and its error, go into a file."""
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        work(*arguments)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def command(log: Path, arguments: list[str], **environment: str) -> None:
    """Run a command of ``st-jv5``."""
    from st_jv5 import cli

    os.environ.update(environment)
    logged(log, cli.main, arguments)
