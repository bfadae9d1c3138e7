"""Limits of a server: sizes of requests, and waiting times."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def _limit(default: Any, about: str) -> Any:
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class Limits:
    """Limits of a server; each one is also an option of ``st-jv5 serve``.

    Example:
        >>> Limits(max_texts=16).max_texts
        16
        >>> Limits(max_texts=0)
        Traceback (most recent call last):
        ...
        ValueError: max_texts must be positive, not 0
    """

    max_texts: int = _limit(2048, "most texts of a request")
    max_tokens: int = _limit(262_144, "most tokens of a request, after long texts are cut")
    max_bytes: int = _limit(4 << 20, "most bytes of a request")
    max_requests: int = _limit(512, "most open requests; beyond, status 429")
    max_waiting_tokens: int = _limit(524_288, "most waiting tokens; beyond, status 429")
    timeout_seconds: float = _limit(120.0, "seconds from a request's last byte to its vectors")
    read_seconds: float = _limit(30.0, "seconds in which a request must arrive")
    stop_seconds: float = _limit(120.0, "seconds after SIGTERM to finish accepted requests")
    batch_wait_ms: float = _limit(2.0, "milliseconds that a text waits for a fuller batch")

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value < 0 or (value == 0 and one.name != "batch_wait_ms"):
                raise ValueError(f"{one.name} must be positive, not {value}")
        if self.max_tokens > self.max_waiting_tokens:
            raise ValueError(
                f"max_tokens, {self.max_tokens}, must not be more than max_waiting_tokens, "
                f"{self.max_waiting_tokens}: such a request would never be accepted"
            )
