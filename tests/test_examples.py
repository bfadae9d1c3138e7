"""Every public name has an example that runs, and so does every code block of the README."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

import st_jv5
from st_jv5 import cli, functional, hub, losses, tasks, teacher, trainer
from st_jv5.evaluation import MTEBEncoder
from st_jv5.texts import read_texts
from tests.conftest import MINILM, real_texts, with_adapters

README = Path(__file__).parent.parent / "README.md"
EXTRA = [
    *(getattr(functional, n) for n in ("cosine_distance", "mean_squared_offdiagonal", "info_nce")),
    functional.cosent,
    functional.relational_distance,
    hub.model_card,
    cli.main,
    MTEBEncoder,
    trainer.trainer_prompts,
    read_texts,
    *(getattr(teacher, name) for name in teacher.__all__),
    __import__("st_jv5.tasks", fromlist=["column_prompts"]).column_prompts
    if inspect.ismodule(tasks)
    else None,
]
PUBLIC = {name: getattr(st_jv5, name) for name in st_jv5.__all__} | {
    thing.__name__: thing for thing in EXTRA if thing is not None
}


@pytest.fixture
def world(tmp_path, backbones) -> dict[str, object]:
    """What the examples may name."""
    texts = [f"{text} {i}" for i in range(8) for text in real_texts()]
    student = st_jv5.new_student(MINILM, layers=1)
    store = st_jv5.TeacherStore.open(tmp_path / "filled", create=True).space("t", dim=384, shards=1)
    store.add(texts, np.random.default_rng(0).standard_normal((len(texts), 384)))
    rows = [[0, 1], [2, 3]]
    pairs = Dataset.from_dict({"query": texts[:2], "positive": texts[2:4], "label": rows})
    args = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"), report_to="none", use_cpu=True
    )
    model = with_adapters(st_jv5.new_student(MINILM, layers=1))
    model.save_pretrained(str(tmp_path / "saved"))
    return {
        **{name: getattr(st_jv5, name) for name in st_jv5.__all__},
        **vars(functional),
        **{name: getattr(teacher, name) for name in teacher.__all__},
        "read_texts": read_texts,
        "column_prompts": __import__("st_jv5.tasks", fromlist=["x"]).column_prompts,
        "TASKS": __import__("st_jv5.tasks", fromlist=["x"]).TASKS,
        "model_card": hub.model_card,
        "MTEBEncoder": MTEBEncoder,
        "SentenceTransformer": SentenceTransformer,
        "torch": torch,
        "np": np,
        "st_jv5": st_jv5,
        "teacher_folder": MINILM,
        "teacher": SentenceTransformer(MINILM),
        "folder": str(tmp_path / "store"),
        "task_folder": str(tmp_path / "task"),
        "out_folder": str(tmp_path / "out"),
        "averaged_folder": str(tmp_path / "averaged"),
        "main": cli.main,
        "saved_folder": str(tmp_path / "saved"),
        "student": student,
        "model": model,
        "store": store,
        "texts": texts,
        "pairs": pairs,
        "args": args,
        "loss": losses.clustering_loss(student, 384, store=store),
        "SimpleNamespace": SimpleNamespace,
    }


@pytest.fixture
def jina_folder(backbones, tmp_path) -> str:
    import json
    import shutil

    from st_jv5.tasks import TASKS as ALL

    folder = tmp_path / "jina"
    shutil.copytree(backbones["eurobert"], folder)
    model = with_adapters(st_jv5.new_student(backbones["eurobert"]))
    for name in ALL:
        st_jv5.take_task(model, name, folder / "adapters" / name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "jina_embeddings_v5"}))
    return str(folder)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_has_an_example_that_runs(name, world, jina_folder):
    doc = inspect.getdoc(PUBLIC[name]) or ""
    assert ">>>" in doc, f"{name} has no example"
    world["jina_folder"] = jina_folder
    test = doctest.DocTestParser().get_doctest(doc, world, name, None, 0)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    output: list[str] = []
    doctest.DocTestRunner(optionflags=flags, verbose=False).run(test, out=output.append)
    assert not output, "".join(output)


def test_every_code_block_of_the_readme_runs(tmp_path, monkeypatch, texts):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 4
    model = with_adapters(st_jv5.new_student(MINILM, layers=[0, 5]))
    model.save_pretrained(str(tmp_path / "out" / "demo" / "model"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    space: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), space)
