"""The processes of torchrun."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState

from st_jv5.recipe.context import WORLD_SIZE

PATIENCE = timedelta(hours=24)
"""How long a process waits for the others.

Some end their share of the teacher's vectors hours before others, and process 0 scores what is
chosen on validation alone. torch's own limits are 10 and 30 minutes. A process that fails is
noticed at once all the same: torchrun then ends the others.
"""


def join_processes() -> PartialState | None:
    """The group of torchrun's processes, where there are several.

    The first call makes it, with our :data:`PATIENCE`. The trainer takes the one that it finds, and
    on a CPU it would make one with torch's own limit.
    """
    if WORLD_SIZE == 1:
        return None
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def wait_for_all() -> None:
    """Wait until every process of torchrun is here, but no longer than :data:`PATIENCE`."""
    if (group := join_processes()) is not None:
        group.wait_for_everyone()
