"""Two processes train what one does, stage by stage, and resume as two."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
TASKS = ("retrieval", "text-matching", "clustering", "classification")
FEW = [f"adapters.{task}.batch_size=1" for task in ("retrieval", "classification")]
"""Rows of four and of nine texts, none twice in a batch, from small sets."""
ALIKE = [
    "precision=float32",
    *(f"adapters.{task}.dropout=0.0" for task in TASKS),
    "adapters.retrieval.data={wordnet-lemmas: 2, wikipedia-descriptions: 1}",
]
"""What makes two halves of a batch the whole one: no random masks, no rounding to bfloat16, and no
rows that share a text, which one batch would hold apart."""


def launcher(processes: int) -> list[str]:
    """Python, in so many processes."""
    if processes == 1:
        return [sys.executable]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    return [*launch, "--master-port", port]


def command(processes: int, recipe: str, only: str, settings: list[str]) -> list[str]:
    sets = [part for setting in settings for part in ("--set", setting)]
    return [*launcher(processes), "-m", "st_jv5.recipe.run", recipe, "--only", only, *sets]


def start(*arguments, log: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("a") as out:
        return subprocess.Popen(
            command(*arguments), cwd=ROOT, env=environment, stdout=out,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def run(*arguments, log: Path) -> None:
    assert start(*arguments, log=log).wait(timeout=600) == 0, log.read_text()[-3000:]


def weights(out: Path, phase: str) -> dict[str, torch.Tensor]:
    """Everything that a phase trained."""
    folder = out / "stage1" / "model" if phase == "stage1" else out / "adapters" / phase
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        if "checkpoints" not in file.parts:
            tensors = load_file(file)
            found |= {f"{file.relative_to(folder)} {name}": t for name, t in tensors.items()}
    assert found
    return found


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> dict[int, Path]:
    """Processes -> output of a run of as many; stage 1 of one is the base of both."""
    outs = {}
    folder = tmp_path_factory.mktemp("processes")
    recipe = tiny(folder, devices=2)
    for count in (1, 2):
        out = folder / f"out-{count}"
        settings = [*ALIKE, *FEW, f"output={out}", f"teacher.store={folder / 'teacher'}"]
        for stage in ("teacher", "stage1", "adapters"):
            run(count, recipe, stage, settings, log=folder / f"{count}.log")
        outs[count] = out
    return outs


@pytest.mark.full
@pytest.mark.parametrize("phase", ["stage1", *TASKS])
def test_two_processes_train_what_one_does_at_the_same_global_batch(phase, trained):
    one, two = (weights(trained[count], phase) for count in (1, 2))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        if (
            "key.bias" in name
        ):  # attention does not see it: its gradient is rounding, AdamW's step not
            continue
        # AdamW's first steps have a gradient's sign alone, which rounding turns where it is tiny.
        difference = (tensor.float() - two[name].float()).norm()
        assert difference <= 5e-3 * tensor.float().norm(), (name, difference)


@pytest.mark.full
@pytest.mark.parametrize("phase", ["stage1", "adapters"])
def test_two_processes_that_are_killed_resume_to_the_same_bits(phase, tiny, tmp_path):
    recipe = tiny(tmp_path, devices=2, steps=40, checkpoint_steps=10)
    store = f"teacher.store={tmp_path / 'teacher'}"
    whole, broken = ([f"output={tmp_path / name}", store, *FEW] for name in ("whole", "broken"))
    log = tmp_path / "log"
    for stage in ("teacher", "stage1", "adapters")[: 2 if phase == "stage1" else 3]:
        run(2, recipe, stage, whole, log=log)
    if phase == "adapters":
        run(2, recipe, "stage1", broken, log=log)
    trained = tmp_path / "broken" / ("stage1" if phase == "stage1" else "adapters/retrieval")
    child = start(2, recipe, phase, broken, log=log)
    first = trained / "checkpoints" / "checkpoint-10" / "trainer_state.json"
    deadline = time.monotonic() + 300
    while not first.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    subprocess.run(["pkill", "-9", "-f", recipe], check=False)
    assert first.exists()
    assert not (trained / "done.json").exists()
    alone = start(1, recipe, phase, broken, log=tmp_path / "alone.log")
    assert alone.wait(timeout=300) != 0
    assert "was written by 2 processes, and these are 1" in (tmp_path / "alone.log").read_text()
    run(2, recipe, phase, broken, log=log)
    for name in ("stage1",) if phase == "stage1" else TASKS:
        one, other = (weights(tmp_path / folder, name) for folder in ("whole", "broken"))
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items()), name


LIMITS = """
import sys
import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from torch.distributed import distributed_c10d
from st_jv5.cli import train as main

try:
    main(sys.argv[1:])
except SystemExit as stopped:
    print(stopped)
SentenceTransformerTrainingArguments(use_cpu=True)  # takes the group that there is
group = distributed_c10d._get_default_group()
print("limit", group._get_backend(torch.device("cpu")).options._timeout)
"""


NOTHING = ["--set", "teacher.model=package:no_such/x"]
"""Stops before any work."""


def test_processes_come_together_before_any_work_with_a_days_patience(tiny, tmp_path, monkeypatch):
    """Their shares of the teacher's vectors may end hours apart."""
    from st_jv5.cli import train as main
    from st_jv5.recipe import processes

    asked = []
    monkeypatch.setattr(processes, "WORLD_SIZE", 2)
    monkeypatch.setattr(processes, "PartialState", lambda **settings: asked.append(settings))
    with pytest.raises(SystemExit, match="pip install no-such"):
        main([tiny(tmp_path), *NOTHING])
    assert asked == [{"cpu": not torch.cuda.is_available(), "timeout": timedelta(days=1)}]


@pytest.mark.full
def test_the_groups_own_limit_is_a_day(tiny, tmp_path):
    (tmp_path / "limits.py").write_text(LIMITS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launcher(2), str(tmp_path / "limits.py"), tiny(tmp_path), *NOTHING],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("pip install no-such") == 2
    assert done.stdout.count("limit 1 day, 0:00:00") == 2, done.stdout


def test_a_loss_that_holds_texts_against_each_other_gathers_them(tiny, tmp_path, monkeypatch):
    """Or InfoNCE's negatives and Eq. 8's M would depend on the number of processes."""
    from st_jv5.recipe.context import Run
    from st_jv5.recipe.load import load_recipe
    from st_jv5.recipe.train import make_loss

    store = SimpleNamespace(dim=384, describe=dict)
    monkeypatch.setattr(Run, "loss_store", lambda run, phase, stores: store)
    changes = ["adapters.retrieval.loss={gather_across_devices: false}"]
    run = Run(load_recipe(tiny(tmp_path), changes))
    found = {}
    for path, phase in run.recipe.phases.items():
        task = path.removeprefix("adapters.").replace("stage1", "base")
        found[task] = make_loss(run, run.new_student(), task, phase, {}).gather_across_devices
    assert found == {
        "base": False,  # distillation: a mean over texts
        "retrieval": False,  # as its recipe says
        "text-matching": True,
        "clustering": False,
        "classification": True,
    }


def test_rows_that_do_not_fall_into_the_processes_are_named(monkeypatch):
    from st_jv5.recipe import train
    from st_jv5.recipe.config import Phase
    from st_jv5.recipe.strict import RecipeError

    phase = Phase(data={"a": 1}, steps=1, batch_size=5, devices=2)
    assert train.rows_here(phase, 5) == 10
    monkeypatch.setattr(train, "WORLD_SIZE", 4)
    with pytest.raises(RecipeError, match="2 x 5 rows cannot be shared among 4 processes"):
        train.rows_here(phase, 5)
