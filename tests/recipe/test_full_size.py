"""Two real optimizer steps of each phase of small and nano, with random weights.

In make test at a tiny size; in make test-full at the full architecture sizes, on short texts.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, Qwen3Config, Qwen3Model

from st_jv5.cli import train as main
from st_jv5.files import read_json
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.planning.cost import read_config
from tests.conftest import real_texts
from tests.recipe.test_config import RECIPES

TINY = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 600,
        "pad_token_id": 0}  # fmt: skip


def teacher_dim(full: bool) -> int:
    return 2560 if full else 96


def rows_for(name: str, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Short rows with a public set's columns."""
    texts = real_texts()
    count = 200 if spec["kind"] == "labelled" else 24  # rows of nine texts, none twice in a batch
    found = []
    for i in range(count):
        row: dict[str, Any] = {}
        for place, (role, column) in enumerate(spec["columns"].items()):
            row[column] = f"{texts[(i + 7 * place) % 64][:40]} {i} {name}"
            if role == "score":
                row[column] = i / count
            if role == "label":
                row[column] = f"label {i % 5}"
        found.append(row)
    return found


def shrunk(name: str, folder: Path, backbones: dict[str, str], full: bool) -> str:
    """The shipped recipe with its losses, thetas and phases, on short texts in tiny batches."""
    recipe = load_recipe(RECIPES[0].with_name(f"{name}.yaml"))
    if not full:
        config = recipe.student.config | TINY
        small = replace(recipe.student, config=config, matryoshka_dims=(32, 64))
        recipe = replace(recipe, student=small)
    torch.manual_seed(0)
    base = folder / "base"
    AutoModel.from_config(read_config(recipe.student, "student")).save_pretrained(base)
    stock = backbones["qwen3" if name == "small" else "eurobert"]
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(stock) / file, base)
    words = SentenceTransformer(stock).tokenizer
    wide = Qwen3Config(
        vocab_size=len(words), hidden_size=teacher_dim(full), num_hidden_layers=1,
        head_dim=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
    )  # fmt: skip
    teacher = folder / "teacher-model"
    Qwen3Model(wide).save_pretrained(teacher)
    words.save_pretrained(teacher)
    tree = json.loads(json.dumps(asdict(recipe)))
    tree |= {"output": str(folder / "out"), "precision": "float32"}
    tree["teacher"] |= {"model": str(teacher), "pooling": "lasttoken"}
    tree["student"] |= {"base": str(base), "max_tokens": 32}
    for data_set, spec in tree["data_sets"].items():
        path = folder / f"{data_set}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows_for(data_set, spec)))
        spec |= {"path": str(path), "limit": None, "characters": 60}
    phases = [tree["stage1"], tree["long"], *tree["adapters"].values()]
    for phase in filter(None, phases):
        phase |= {"steps": 2, "batch_size": 2, "checkpoint_steps": 2, "warmup_steps": 0}
        phase["batch_sizes"] = dict.fromkeys(phase["batch_sizes"], 1)
        phase["devices"] = 1
        phase["max_tokens"] = dict.fromkeys(phase["max_tokens"], 32)
        if "average" in phase:
            phase["average"] = []
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return str(path)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("small", False),
        pytest.param("nano", True, marks=pytest.mark.full),
        pytest.param("small", True, marks=pytest.mark.full),
    ],
)
def test_two_steps_of_each_phase(name, full, tmp_path, backbones):
    path = shrunk(name, tmp_path, backbones, full)
    for stage in ("teacher", "stage1", "adapters", "model"):
        main([path, "--only", stage])
        for checkpoints in (tmp_path / "out").rglob("checkpoints"):
            shutil.rmtree(checkpoints)
    recipe, out = load_recipe(path), tmp_path / "out"
    for phase in recipe.phases:
        log = read_json(out / phase.replace(".", "/") / "log.json")
        steps = [entry for entry in log["history"] if "loss" in entry]
        assert [entry["step"] for entry in steps] == [1, 2], phase
        assert all(np.isfinite(entry["loss"]) and entry["grad_norm"] > 0 for entry in steps), phase
        print(f"{name} {phase}: {log['seconds']:.1f} s, peak {log['peak_memory_mib']:.0f} MiB")
    model = SentenceTransformer(str(out / "model"))
    assert model[0].theta_serve == recipe.student.serve_theta
    thetas = {task: phase.theta for task, phase in recipe.adapters.items()}
    last = recipe.long or recipe.stage1
    assert model[0].theta_train == {"base": last.theta, **thetas}
    assert model[0].projection.linear.weight.shape == (
        teacher_dim(full),
        model[0].config.hidden_size,
    )
    for task in recipe.adapters:
        file = out / "model" / "adapters" / task / "adapter_model.safetensors"
        moved = [t for n, t in load_file(file).items() if ".lora_B." in n]
        assert all(bool(tensor.any()) for tensor in moved), task
    shutil.rmtree(out)


def test_a_fitted_projection_begins_nearer_the_teacher(tmp_path, backbones):
    path = shrunk("small", tmp_path, backbones, full=False)
    begun = {}
    for texts in (0, 150):
        out = tmp_path / "out" / str(texts)
        settings = [f"output={out}", f"teacher.store={tmp_path / 'teacher'}"]
        settings += [f"stage1.fit_projection={texts}", "long=null", "stage1.batch_size=16"]
        settings += ["stage1.batch_sizes={}", "student.matryoshka_dims=[64]", "adapters={}"]
        command = [part for setting in settings for part in ("--set", setting)]
        if not texts:
            main([path, "--only", "teacher", *command])
        main([path, "--only", "stage1", *command])
        begun[texts] = read_json(out / "stage1" / "log.json")["history"][0]["distill"]
    assert begun[150] < 0.9 * begun[0]
    settings[0], settings[2] = f"output={tmp_path / 'few'}", "stage1.fit_projection=50"
    command = [part for setting in settings for part in ("--set", setting)]
    with pytest.raises(SystemExit, match="fit_projection: 50 texts are too few to fit 64 dims"):
        main([path, "--only", "stage1", *command])
