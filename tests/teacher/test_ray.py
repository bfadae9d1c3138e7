"""The same store through Ray's workers; each test in a process of its own, with a small cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from st_jv5 import cli
from st_jv5.recipe import teach
from st_jv5.recipe.context import Run
from st_jv5.recipe.load import load_recipe
from st_jv5.teacher import TeacherStore, fill
from tests.recipe.test_config import DEMO
from tests.teacher.ray_worker import NAMES

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def recipe(tmp_path) -> str:
    """A few rows of the demo, stage 1 alone, in float32."""
    tree = yaml.safe_load(DEMO.read_text())
    tree |= {"name": "tiny", "precision": "float32", "adapters": {}}
    tree["stage1"] |= {"data": {"wikipedia-descriptions": 1}, "replay": {}}
    tree["data_sets"] = {"wikipedia-descriptions": tree["data_sets"]["wikipedia-descriptions"]}
    tree["data_sets"]["wikipedia-descriptions"]["limit"] = 60
    path = tmp_path / "tiny.yaml"
    tree["data_folder"] = str(ROOT)
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return str(path)


def the_vectors(recipe: str, output: str) -> tuple[np.ndarray, np.ndarray]:
    run = Run(load_recipe(recipe, [f"output={output}"]))
    (texts,) = teach.wanted(run).values()
    (store,) = run.spaces(None)
    assert len(store) == len(texts) > 100
    rows = store.rows(texts)
    return rows, store.gather(rows).float().numpy()


@pytest.mark.full
def test_two_workers_fill_the_store_that_one_process_fills(recipe, tmp_path):
    here, there = (str(tmp_path / name / "out") for name in ("here", "there"))
    command = [recipe, "--set", f"output={there}", "--engine", "ray", "--workers", "2"]
    told = run("-m", "st_jv5", "teach", *command)
    cli.main(["teach", recipe, "--set", f"output={here}"])
    rows, vectors = the_vectors(recipe, here)
    ray_rows, ray_vectors = the_vectors(recipe, there)
    assert np.array_equal(rows, ray_rows)
    np.testing.assert_allclose(ray_vectors, vectors, atol=2e-4)  # float16 rounding
    assert f"{len(rows)} of them new" in told


@pytest.mark.full
def test_a_worker_that_dies_is_replaced_and_a_broken_vector_is_named(tmp_path):
    told = run("-m", "tests.teacher.ray_worker", str(tmp_path / "ray"))
    assert "filled 400" in told
    assert "died True" in told
    assert "refused the vector of text" in told
    assert "'text 77'" in told
    stores = [TeacherStore.open(tmp_path / name, create=True) for name in ("ray", "here")]
    by_ray, here = (store.space("names", dim=3, shards=4) for store in stores)
    fill(
        here,
        lambda texts: [[len(t), sum(map(ord, t)), 1.0] for t in texts],
        NAMES,
        chunk_texts=10,
    )
    for kind in ("vectors", "hashes", "json"):
        for path in here.path.glob(f"*.{kind}"):
            assert path.read_bytes() == (by_ray.path / path.name).read_bytes()


@pytest.mark.full
def test_torchrun_fills_the_store_that_one_process_fills(recipe, tmp_path):
    here, there = (str(tmp_path / name / "out") for name in ("here", "there"))
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "st_jv5", "teach"]
    run(*launch, recipe, "--set", f"output={there}")
    cli.main(["teach", recipe, "--set", f"output={here}"])
    (rows, vectors), (other_rows, other) = (the_vectors(recipe, out) for out in (here, there))
    assert np.array_equal(rows, other_rows)
    np.testing.assert_allclose(other, vectors, atol=2e-4)
