"""Compiled layers train what plain ones do, and leave nothing behind."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess

import pytest
import torch
from safetensors import safe_open
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5.losses import retrieval_loss
from st_jv5.trainer.compilation import SETTINGS, compiled_layers, layers_of
from tests.conftest import ROOT, TEACHER_DIM, adapted, arguments, real_texts, trainable
from tests.recipe.test_processes import launcher

BACKEND = "eager"
"""Traces as any does, and does not compile: a test would wait minutes for it."""


@pytest.fixture(autouse=True)
def clean():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def vectors_and_gradients(model, task, budget=None):
    features = [dict(model.preprocess(real_texts()[i : i + 8])) for i in (0, 8)]
    loss = st_jv5.CompositeLoss(
        model,
        {"infonce": (st_jv5.losses.InfoNCELoss(model), 1.0)},
        dims=(8, 48),
        mini_batch_tokens=budget,
    )
    st_jv5.train_task(model, task)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    vectors = [model(dict(one))["sentence_embedding"].detach() for one in features]
    sum(loss(features).values()).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return torch.cat(vectors), found


def compare(plain, compiled):
    assert (plain[0] - compiled[0]).abs().max() < 1e-5
    assert plain[1].keys() == compiled[1].keys()
    for name, one in plain[1].items():
        assert (one - compiled[1][name]).norm() <= 1e-5 * one.norm() + 1e-7, name


def test_vectors_and_gradients_are_those_of_plain_layers(model):
    plain = {n: vectors_and_gradients(model, n, 128) for n in ("base", "retrieval")}
    with compiled_layers(model, BACKEND):
        for name, found in plain.items():
            compare(found, vectors_and_gradients(model, name, 128))
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    # With and without gradients, a mask, and an input that learns: not one for each layer or shape.
    assert 4 <= counters["stats"]["unique_graphs"] <= 16


def test_the_compiler_has_its_settings_in_both_passes(model):
    seen = []

    def backend(graph, inputs):
        own = {name: getattr(torch._dynamo.config, name) for name in SETTINGS}
        seen.append((torch.is_grad_enabled(), own == SETTINGS))
        return graph.forward

    with compiled_layers(model, backend):
        vectors_and_gradients(model, "retrieval", 128)
    assert {right for _, right in seen} == {True}
    assert {with_gradients for with_gradients, _ in seen} == {True, False}
    assert torch._dynamo.config.recompile_limit != SETTINGS["recompile_limit"]


@pytest.mark.full
def test_every_architecture_can_be_compiled(backbones, architecture):
    model = adapted(backbones[architecture])
    plain = vectors_and_gradients(model, "retrieval")
    with compiled_layers(model, BACKEND):
        compare(plain, vectors_and_gradients(model, "retrieval"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


def test_nothing_of_it_is_kept(model, tmp_path):
    names = list(model.state_dict())
    before = st_jv5.encode(model, real_texts(), task="retrieval")

    def compiled(one):
        return [m for m in one.modules() if m._compiled_call_impl is not None]

    with compiled_layers(model, BACKEND):
        assert len(compiled(model)) == len(list(layers_of(model[0].model)))
        assert list(model.state_dict()) == names
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        model.save_pretrained(str(tmp_path / "saved"))
        model.train()  # as another thread finds it that encodes meanwhile
        during = st_jv5.encode(model, real_texts(), task="retrieval")
    copies.append(SentenceTransformer(str(tmp_path / "saved")))
    assert not compiled(model)
    assert (before == during).all()
    for other in copies:
        assert not compiled(other)
        assert (before == st_jv5.encode(other, real_texts(), task="retrieval")).all()
    assert not torch._dynamo.utils.counters["stats"]


def test_a_backbone_without_layers_is_refused(model):
    model[0].model.layers = torch.nn.Identity()
    with (
        pytest.raises(ValueError, match="EuroBertModel has no list of layers to compile"),
        compiled_layers(model),
    ):
        pass


def train(backbone, pairs, store, folder, task, compiled, resume=False):
    torch.manual_seed(0)
    model = adapted(backbone)
    trainer = st_jv5.AdapterTrainer(
        model,
        arguments(
            folder,
            max_steps=4,
            save_steps=2,
            learning_rate=1e-3,
            torch_compile=compiled,
            torch_compile_backend=BACKEND if compiled else None,
        ),
        tasks=task,
        train_dataset=pairs,
        loss=retrieval_loss(model, TEACHER_DIM, store=store, dims=(8, 48)),
    )
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if resume else None)
    return trainable(model)


@pytest.mark.parametrize("task", ["base", "retrieval"])
def test_the_trainer_compiles_saves_and_resumes(backbones, pairs, store, tmp_path, task):
    own = backbones["eurobert"], pairs, store
    plain = train(*own, tmp_path / "plain", task, compiled=False)
    assert not torch._dynamo.utils.counters["stats"]
    compiled = train(*own, tmp_path / "compiled", task, compiled=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    resumed = train(*own, tmp_path / "compiled", task, compiled=True, resume=True)
    assert plain.keys() == compiled.keys()
    for name, tensor in plain.items():
        assert (tensor - compiled[name]).norm() <= 1e-4 * tensor.norm() + 1e-6, name
        assert torch.equal(compiled[name], resumed[name]), name
    saved = [
        {
            str(file.relative_to(tmp_path / folder)): sorted(safe_open(file, "pt").keys())
            for file in (tmp_path / folder / "checkpoint-2").rglob("*.safetensors")
        }
        for folder in ("plain", "compiled")
    ]
    assert saved[0] == saved[1]
    assert saved[0]


def test_gradient_checkpointing_is_refused_with_the_way_out(model, pairs, tmp_path):
    args = arguments(tmp_path, gradient_checkpointing=True)
    args.torch_compile = True
    with pytest.raises(ValueError, match=r"does not go with gradient_checkpointing.*mini_batch"):
        st_jv5.AdapterTrainer(
            model, args, tasks="base", train_dataset=pairs, loss=retrieval_loss(model, TEACHER_DIM)
        )


TWO = """
import sys
import torch
from datasets import Dataset
import st_jv5
from tests.conftest import adapted, arguments, real_texts, trainable

texts = real_texts()
data = Dataset.from_dict({"query": texts[:16], "positive": texts[16:32]})
found = []
for compiled in (False, True):
    model = adapted(sys.argv[1])
    loss = st_jv5.CompositeLoss(
        model, {"infonce": (st_jv5.losses.InfoNCELoss(model), 1.0)}, mini_batch_tokens=64
    )
    args = arguments(
        sys.argv[2], max_steps=2, save_strategy="no", learning_rate=1e-3, torch_compile=compiled,
        torch_compile_backend="eager" if compiled else None,
    )
    trainer = st_jv5.AdapterTrainer(
        model, args, tasks="retrieval", train_dataset=data, loss=loss
    )
    trainer.train()
    found.append(trainable(model))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert bool(graphs) == compiled, graphs
for name, one in found[0].items():
    assert (one - found[1][name]).norm() <= 1e-4 * one.norm() + 1e-6, name
print(f"same in {args.world_size}\\n", end="", flush=True)
"""


@pytest.mark.full
def test_two_processes_compile_too(backbones, tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    done = subprocess.run(
        [*launcher(2), str(tmp_path / "two.py"), backbones["eurobert"], str(tmp_path)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("same in 2") == 2
