"""A run that is killed and resumed ends with the bits of one that is not."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from pathlib import Path

import pytest
import torch

import st_jv5
from tests.conftest import real_texts
from tests.resume_worker import (
    SEVERAL,
    SINGLE,
    STEPS,
    every_step,
    few_steps,
    resume_all,
    run,
)


def run_killed(processes, arguments: tuple, kills: int, draw: random.Random) -> list[int]:
    """Run, kill at a random step, again; then to the end. Gives the steps of the kills."""
    killed: list[int] = []
    while True:
        step = processes.Value("i", 0)
        child = processes.Process(target=run, args=(*arguments, step))
        child.start()
        if len(killed) == kills:
            child.join(timeout=120)
            assert child.exitcode == 0
            return killed
        begin = st_jv5.trainer.last_checkpoint(arguments[-1])
        begin = int(begin.rsplit("-", 1)[1]) if begin else 0
        target = min(begin + draw.randint(1, 5), STEPS - 1)
        deadline = time.monotonic() + 120
        while step.value < target and child.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.06)  # anywhere in the step, or in the middle of a save
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL, f"ended before it was killed: {child.exitcode}"
        killed.append(step.value)


@pytest.mark.parametrize(
    ("kills", "task"),
    [
        (2, "retrieval"),
        pytest.param(10, "retrieval", marks=pytest.mark.full),
        pytest.param(10, "base", marks=pytest.mark.full),
    ],
)
def test_a_killed_run_resumes_to_the_bits_of_an_unbroken_one(
    processes, backbones, tmp_path, task, kills
):
    seed = random.SystemRandom().randrange(10**6)
    finals, killed = [], []
    for folder, times in ((tmp_path / "unbroken", 0), (tmp_path / "killed", kills)):
        arguments = (backbones["bert"], real_texts(), task, str(folder))
        killed = run_killed(processes, arguments, times, random.Random(seed))
        finals.append(torch.load(Path(folder) / "final.pt"))
    unbroken, resumed = finals
    told = f"seed {seed}, killed at steps {killed}"
    assert len(killed) == kills
    for name, tensor in unbroken["weights"].items():
        assert torch.equal(tensor, resumed["weights"][name]), f"{name}: {told}"
    assert unbroken["history"] == resumed["history"], told
    moved = [entry["gor"] for entry in unbroken["history"]]
    assert moved[0] == 0 < moved[-1]  # the schedule went its way


def wrong_steps(processes, backbones, folder: Path, kinds, choose, world: int) -> dict[str, list]:
    """By sampler, the checkpoints from which a resumed run ended with other bits."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (backbones["bert"], real_texts(), kinds, choose, str(folder))
    children = [
        processes.Process(target=resume_all, args=(*given, rank, world, port))
        for rank in range(world)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=280 if choose is few_steps else 3000)
        assert child.exitcode == 0
    told = [torch.load(folder / f"told-{rank}.pt") for rank in range(world)]
    for kind in kinds:
        print(kind, [one[kind] for one in told])
        assert all(one[kind]["checkpoints"] >= 3 for one in told)
    return {kind: [step for one in told for step in one[kind]["wrong"]] for kind in kinds}


FEW = {
    1: [*SINGLE[:2], SINGLE[3], "weighted batch_sampler", "round_robin no_duplicates_hashed"],
    2: ["no_duplicates", "proportional batch_sampler"],
}


@pytest.mark.parametrize("world", [1, 2])
def test_every_sampler_resumes_to_the_same_bits(processes, backbones, tmp_path, world):
    kinds = FEW[world]
    assert not any(wrong_steps(processes, backbones, tmp_path, kinds, few_steps, world).values())


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world", [1, 2])
def test_every_sampler_resumes_from_every_checkpoint(processes, backbones, tmp_path, world):
    kinds = [*SINGLE, *SEVERAL]
    assert not any(wrong_steps(processes, backbones, tmp_path, kinds, every_step, world).values())
