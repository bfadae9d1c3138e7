"""The demo's recipe, tiny: two steps a phase, two layers, few rows of real text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.recipe.test_config import DEMO

STEPS = {"steps": 2, "batch_size": 4, "checkpoint_steps": 1, "warmup_steps": 0}


@pytest.fixture(scope="session")
def tiny(smaller):
    """``tiny(folder, **phase)`` writes the recipe there, each phase with these settings."""

    def write(folder: Path, **phase: Any) -> str:
        tree = smaller(yaml.safe_load(DEMO.read_text()))
        tree |= {"name": "tiny", "output": str(folder / "out")}
        tree["student"] |= {"layers": [0, 5], "max_tokens": 16, "matryoshka_dims": [32, 384]}
        tree["teacher"]["max_tokens"] = 16
        for spec in tree["data_sets"].values():
            spec["limit"] = 400 if spec.get("kind") == "labelled" else 24
        for one in (tree["stage1"], *tree["adapters"].values()):
            one |= STEPS | phase
        tree["adapters"]["retrieval"]["average"] = [(STEPS | phase)["checkpoint_steps"]]
        tree["evaluation"] = {"tasks": ["WordNetSTS"], "dims": [32], "resamples": 50}
        tree["evaluation"]["precisions"] = ["float32", "binary"]
        path = folder / "tiny.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return str(path)

    return write
