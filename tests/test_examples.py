"""Every public name has an example that runs; tests/test_docs.py runs those of the pages."""

from __future__ import annotations

import doctest
import inspect
import json
import re
import shutil
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

import st_jv5
from st_jv5 import (
    adapters,
    cli,
    doctor,
    export,
    fingerprint,
    functional,
    heads,
    losses,
    modules,
    precision,
    projection,
    query_table,
    rotation,
    serve,
    teacher,
    trainer,
    vectors,
)
from st_jv5.backbone import rope
from st_jv5.backbone.vocabulary import cut_vocabulary
from st_jv5.evaluation.mteb_encoder import MTEBEncoder
from st_jv5.folders import card, licenses, trust
from st_jv5.machine import cpu
from st_jv5.publish import hub, self_test
from st_jv5.serve.app import create_app
from st_jv5.task_table import PROMPTS, TASKS, column_prompts
from st_jv5.texts import read_texts
from st_jv5.trainer import data_sets, resuming
from tests.conftest import MINILM, real_texts, with_adapters

PACKAGES = (adapters, losses, modules, serve, st_jv5.student, teacher, trainer, vectors)
EXTRA = [
    *(getattr(functional, n) for n in ("cosine_distance", "mean_squared_offdiagonal", "info_nce")),
    functional.cosent,
    functional.relational_distance,
    card.model_card,
    card.as_words,
    card.as_code,
    hub.publish,
    licenses.Licenses,
    self_test.self_test,
    trust.check_folder,
    trust.check_stock,
    trust.contents_of,
    export.export,
    export.parity_texts,
    cli.main,
    create_app,
    MTEBEncoder,
    *(getattr(precision, name) for name in ("bytes_per_vector", "ranges_of", "stored")),
    *(getattr(precision, name) for name in ("codes", "from_codes")),
    fingerprint.fingerprint,
    doctor.doctor,
    data_sets.own_copy,
    data_sets.trainer_prompts,
    resuming.content_hash,
    read_texts,
    cpu.attention_in_float32,
    cpu.bound_kernel_cache,
    cpu.give_back_memory,
    cut_vocabulary,
    rope.train_at,
    rope.serve_at,
    column_prompts,
    projection.Projection,
    projection.fit_projection,
    query_table.remember_words,
    heads.ridge,
    rotation.axes_of,
    rotation.moment_of,
    rotation.refined,
    rotation.unrotate,
]
NAMED = [getattr(one, name) for one in (st_jv5, *PACKAGES) for name in one.__all__]
PUBLIC = {
    f"{thing.__module__}.{thing.__name__}": thing for thing in (*NAMED, *EXTRA) if callable(thing)
}


@pytest.fixture
def world(tmp_path, backbones):
    """What an example may name: ``world(thing)`` makes what its words ask for, and no more."""
    texts = [f"{text[:60]} {i}" for i in range(8) for text in real_texts()]

    @cache
    def student() -> SentenceTransformer:
        return st_jv5.new_student(MINILM, layers=1, prompts=PROMPTS)

    @cache
    def model() -> SentenceTransformer:
        return with_adapters(st_jv5.new_student(MINILM, layers=1))

    @cache
    def store() -> st_jv5.teacher.TeacherStore:
        folder = st_jv5.teacher.TeacherStore.open(tmp_path / "filled", create=True)
        filled = folder.space("t", dim=384, shards=1)
        filled.add(texts, np.random.default_rng(0).standard_normal((len(texts), 384)))
        return filled

    def pairs() -> Dataset:
        columns = {"query": texts[:2], "positive": texts[2:4], "label": [[0, 1], [2, 3]]}
        return Dataset.from_dict(columns)

    def args() -> SentenceTransformerTrainingArguments:
        return SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path / "run"), report_to="none", use_cpu=True
        )

    def saved_folder() -> str:
        model().save_pretrained(str(tmp_path / "saved"))
        return str(tmp_path / "saved")

    def vectors_folder() -> str:
        lines = [{"id": f"n{i}", "text": text} for i, text in enumerate(real_texts(4))]
        (tmp_path / "four.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        corpus = vectors.Corpus(tmp_path / "four.jsonl", "text")
        made = tmp_path / "vectors"
        vectors.encode_corpus(saved_folder(), corpus, made, task="retrieval", dim=64)
        return str(made)

    def jina_folder() -> str:
        folder = tmp_path / "jina"
        shutil.copytree(backbones["eurobert"], folder)
        adapted = with_adapters(st_jv5.new_student(backbones["eurobert"]))
        for name in TASKS:
            st_jv5.adapters.save_adapter(adapted, name, folder / "adapters" / name)
        config = json.loads((folder / "config.json").read_text())
        published = config | {"model_type": "jina_embeddings_v5"}
        (folder / "config.json").write_text(json.dumps(published))
        return str(folder)

    made_when_named = {
        "student": student,
        "model": model,
        "store": store,
        "pairs": pairs,
        "args": args,
        "saved_folder": saved_folder,
        "vectors_folder": vectors_folder,
        "jina_folder": jina_folder,
        "teacher": lambda: SentenceTransformer(MINILM),
        "rotary_student": lambda: st_jv5.new_student(backbones["eurobert"]),
        "stock_folder": lambda: shutil.copytree(backbones["bert"], str(tmp_path / "stock")),
        "loss": lambda: losses.clustering_loss(student(), 384, store=store()),
    }
    folders = {
        "folder": "store",
        "task_folder": "task",
        "averaged_folder": "averaged",
        "out_folder": "out",
        "export_folder": "export",
    }

    def build(thing: object) -> dict[str, object]:
        doc = inspect.getdoc(thing) or ""
        words = set(re.findall(r"\w+", doc))
        return {
            **{name: getattr(st_jv5, name) for name in st_jv5.__all__},
            **vars(functional),
            **{thing.__name__: thing for thing in PUBLIC.values()},
            **vars(inspect.getmodule(thing)),
            **{name: str(tmp_path / folder) for name, folder in folders.items()},
            **{name: make() for name, make in made_when_named.items() if name in words},
            "TASKS": TASKS,
            "SentenceTransformer": SentenceTransformer,
            "SimpleNamespace": SimpleNamespace,
            "torch": torch,
            "np": np,
            "st_jv5": st_jv5,
            "teacher_folder": MINILM,
            "texts": texts,
        }

    return build


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_has_an_example_that_runs(name, world):
    doc = inspect.getdoc(PUBLIC[name]) or ""
    assert ">>>" in doc, f"{name} has no example"
    test = doctest.DocTestParser().get_doctest(doc, world(PUBLIC[name]), name, None, 0)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    output: list[str] = []
    doctest.DocTestRunner(optionflags=flags, verbose=False).run(test, out=output.append)
    assert not output, "".join(output)
