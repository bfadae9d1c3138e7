"""A term's weight over the steps of a run."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, asdict, dataclass
from typing import Any, Literal, get_args

Shape = Literal["linear", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """A weight that moves from ``start`` to ``end`` over ``steps`` optimizer steps, then stays.

    :class:`~st_jv5.AdapterTrainer` sets the step in the loss, also after a resume. A plain trainer
    does not, and there the loss raises an error.

    Example:
        >>> weight = Schedule(start=2.0, end=0.0, steps=100)
        >>> weight.at(0), weight.at(50), weight.at(1000)
        (2.0, 1.0, 0.0)
        >>> loss = CompositeLoss(student, {
        ...     "infonce": (InfoNCELoss(student), 1.0),
        ...     "gor": (GORLoss(student), Schedule(start=0.0, end=1.0, steps=500, shape="cosine")),
        ... })
    """

    start: float
    """The weight until step ``begin``."""
    end: float
    """The weight from step ``begin + steps``."""
    steps: int
    """Optimizer steps from ``start`` to ``end``."""
    _: KW_ONLY
    begin: int = 0
    """The step at which the weight begins to change."""
    shape: Shape = "linear"
    """``"linear"``, or ``"cosine"``: half a cosine wave, slow at both ends."""

    def __post_init__(self) -> None:
        if not (0 <= self.start < math.inf and 0 <= self.end < math.inf):
            raise ValueError(f"weights must be finite and >= 0, not {self.start} -> {self.end}")
        if self.steps < 1 or self.begin < 0:
            raise ValueError(f"steps must be >= 1 and begin >= 0, not {self.steps}, {self.begin}")
        if self.shape not in get_args(Shape):
            raise ValueError(f"shape must be one of {get_args(Shape)}, not {self.shape!r}")

    def at(self, step: int) -> float:
        """The weight of the ``step``-th optimizer step, counted from 0."""
        share = min(max((step - self.begin) / self.steps, 0.0), 1.0)
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start + (self.end - self.start) * share

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, for a model card."""
        return asdict(self)
