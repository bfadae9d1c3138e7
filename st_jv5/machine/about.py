"""What the machine is and multiplies fast; with commit and time, what computed a number."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch


@cache
def machine() -> str:
    """The GPUs, or the processor and its cores, in words.

    Example:
        >>> isinstance(machine(), str)
        True
    """
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return f"{count} x {torch.cuda.get_device_name()}"
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    return f"{_processor()}, {_counted(cores, 'core')}, {_counted(threads, 'thread')}"


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    if told.is_file():
        for line in told.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return " ".join(value.split())
    return platform.processor() or platform.machine()


@cache
def commit() -> str | None:
    """The commit of a checkout of st_jv5; None where it is installed."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    asked = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return None
    return found.stdout.strip() or None


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a GPU or CPU multiplies bfloat16 in hardware.

    ``torch.cuda.is_bf16_supported`` says yes of older GPUs, too, which emulate it slowly.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
