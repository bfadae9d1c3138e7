"""What a server takes, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def _limit(default: Any, about: str) -> Any:
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; each is a flag of ``st-jv5 serve``, too.

    Example:
        >>> Limits(max_texts=16).max_texts
        16
        >>> Limits(max_texts=0)
        Traceback (most recent call last):
        ...
        ValueError: max_texts must be positive, not 0
    """

    max_texts: int = _limit(2048, "texts of a request")
    max_tokens: int = _limit(262_144, "tokens of a request, after the cut to the model's length")
    max_bytes: int = _limit(4 << 20, "bytes of a request")
    max_requests: int = _limit(512, "requests that are open at once; 429 beyond")
    max_waiting_tokens: int = _limit(524_288, "tokens that wait for the model; 429 beyond")
    timeout_seconds: float = _limit(120.0, "from a request's last byte to its vectors")
    read_seconds: float = _limit(30.0, "for a request to come in")
    stop_seconds: float = _limit(120.0, "for what was taken to be finished, after SIGTERM")
    batch_wait_ms: float = _limit(2.0, "a text waits for others to share its batch")

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value < 0 or (value == 0 and one.name != "batch_wait_ms"):
                raise ValueError(f"{one.name} must be positive, not {value}")
        if self.max_tokens > self.max_waiting_tokens:
            raise ValueError(
                f"max_tokens, {self.max_tokens}, must not be more than max_waiting_tokens, "
                f"{self.max_waiting_tokens}: such a request would never be taken"
            )
