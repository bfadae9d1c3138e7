"""How often a training step waits for its device, counted on a device that only counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.version import Version

pytestmark = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.11"),
    reason="before torch 2.11 a process with a device made in Python aborts when it ends",
)


@pytest.fixture(scope="module")
def waits():
    """Architecture -> padded tokens of a chunk -> forwards, and waits by kind."""
    # Not this process's environment: trainers leave settings of theirs in it.
    own = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    program = str(Path(__file__).parent / "fake_gpu.py")
    ran = subprocess.run(
        [sys.executable, program, "bert", "qwen3", "eurobert", "mpnet"],
        capture_output=True,
        text=True,
        env={**own, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = {}
    for line in ran.stdout.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    return found


@pytest.mark.parametrize("kind", ["bert", "qwen3", "eurobert"])
def test_a_step_waits_as_often_in_many_chunks_as_in_few(waits, kind):
    few, many = waits[kind]["2048"], waits[kind]["8"]
    assert many["forwards"] > 10 * few["forwards"]
    assert many["waits"] == few["waits"]
    assert sum(few["waits"].values()) <= 3


def test_what_makes_its_own_mask_waits_once_a_forward(waits):
    """MPNet asks, where it makes its mask, whether it needs one: transformers', not ours."""
    for found in waits["mpnet"].values():
        assert found["waits"]["_local_scalar_dense.default"] <= found["forwards"]
