"""What a GPU must do as a CPU does: ``pytest -m gpu``.

``make test`` runs the same claims on the CPU, where the first of each pair is the second; the few
that need a GPU are skipped there.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from transformers import TrainerCallback

import st_jv5
from eval.gpu.bench import told_of_waits
from st_jv5.doctor import doctor
from st_jv5.serve import Limits
from st_jv5.serve.batcher import Batcher
from st_jv5.teacher import TeacherStore
from st_jv5.trainer.compilation import compiled_layers
from tests.conftest import adapted, real_texts

DEVICE = os.environ.get("ST_JV5_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
CUDA = DEVICE == "cuda"
ROWS, DIMS, TEACHER = 16, (8, 16, 48), 24
pytestmark = pytest.mark.gpu
only_cuda = pytest.mark.skipif(not CUDA, reason="needs a GPU")


@pytest.fixture
def pair(backbones, architecture):
    """One model on the CPU, and the same on the GPU."""
    return adapted(backbones[architecture]).to("cpu"), adapted(backbones[architecture]).to(DEVICE)


@pytest.fixture
def space(tmp_path):
    store = TeacherStore.open(tmp_path / "teacher", create=True).space("t", dim=TEACHER)
    vectors = np.random.default_rng(0).standard_normal((len(real_texts()), TEACHER))
    store.add(real_texts(), vectors)
    return store


def batch(model, store, columns=2):
    cut = [real_texts()[c * ROWS : (c + 1) * ROWS] for c in range(columns)]
    features = [
        {
            key: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for key, value in model.preprocess(texts).items()
        }
        for texts in cut
    ]
    return features, torch.from_numpy(np.stack([store.rows(texts) for texts in cut], axis=1))


ENCODERS = {
    "sentence-transformers": lambda m, t: m.encode(t, task="retrieval", batch_size=16),
    "st_jv5": lambda m, t: st_jv5.encode(m, t, task="retrieval", batch_tokens=512),
    "base": lambda m, t: st_jv5.encode(m, t, task="base"),
    "cut": lambda m, t: st_jv5.encode(m, t, task="clustering", dim=8),
    "mixed": lambda m, t: st_jv5.encode_mixed(
        m, t, (["query", "base", "clustering"] * len(t))[: len(t)]
    ),
}


@pytest.mark.parametrize("how", ENCODERS)
def test_vectors_are_the_cpus(pair, how):
    cpu, gpu = (ENCODERS[how](model, real_texts()) for model in pair)
    assert gpu.dtype == np.float32
    assert np.abs(cpu - gpu).max() < 1e-5


def test_merged_and_unmerged_vectors_agree(pair):
    _, gpu = pair
    merged = st_jv5.encode(gpu, real_texts(), task="retrieval")
    assert len(gpu[0].merging) == 1
    gpu[0].merging.least_tokens = None
    assert np.abs(merged - st_jv5.encode(gpu, real_texts(), task="retrieval")).max() < 1e-5


def test_half_precision_is_near(saved):
    full = SentenceTransformer(saved, device="cpu")
    half = SentenceTransformer(saved, device=DEVICE, model_kwargs={"dtype": torch.bfloat16})
    a, b = (st_jv5.encode(m, real_texts(), task="retrieval") for m in (full, half))
    assert (a * b).sum(1).min() > 0.998  # random weights of 48 dims


def test_merged_copies_follow_the_model(pair):
    _, gpu = pair
    there = st_jv5.encode(gpu, real_texts(), task="retrieval")
    here = st_jv5.encode(gpu.to("cpu"), real_texts(), task="retrieval")
    again = st_jv5.encode(gpu.to(DEVICE), real_texts(), task="retrieval")
    assert np.abs(here - there).max() < 1e-5
    assert np.array_equal(there, again)


def test_threads_get_their_own_task(pair):
    _, gpu = pair
    names = [*gpu[0].tasks] * 2
    alone = [st_jv5.encode(gpu, real_texts(), task=name) for name in names]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda n: st_jv5.encode(gpu, real_texts(), task=n), names))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def _repeated(count):
    return [f"{text} {number}" for number in range(count) for text in real_texts()][: 2 * 48 + 8]


def test_heads_fitted_on_a_gpu_are_the_cpus(pair):
    texts, found = _repeated(3), []
    for model in pair:
        st_jv5.fit_heads(model, texts, hidden=8, steps=5)
        found.append(st_jv5.encode(model, real_texts(), task="clustering", mode="head"))
    assert np.abs(found[0] - found[1]).max() < 1e-3  # a fit of few texts, its inputs 1e-6 apart
    both = st_jv5.encode_all_tasks(pair[1], real_texts(), mode="head")
    assert np.abs(both["clustering"] - found[1]).max() < 1e-5


def test_a_rotation_on_a_gpu_keeps_cosines_and_moves_with_the_model(pair):
    _, gpu = pair
    before = st_jv5.encode(gpu, real_texts(), task="retrieval")
    st_jv5.rotate(gpu, real_texts(), steps=2)
    after = st_jv5.encode(gpu, real_texts(), task="retrieval")
    assert np.abs(before @ before.T - after @ after.T).max() < 1e-5
    assert np.abs(before - after).max() > 1e-2
    assert np.abs(st_jv5.encode(gpu.to("cpu"), real_texts(), task="retrieval") - after).max() < 1e-5


def test_a_query_table_of_a_model_on_a_gpu_answers_there(pair):
    cpu, gpu = (st_jv5.fit_query_table(model, real_texts(), epochs=1) for model in pair)
    queries = [model.encode_query(real_texts()) for model in (cpu, gpu)]
    documents = [model.encode_document(real_texts()) for model in (cpu, gpu)]
    assert gpu.device.type == DEVICE
    assert np.abs(queries[0] - queries[1]).max() < 1e-3  # trained on vectors that are 1e-6 apart
    assert np.abs(documents[0] - documents[1]).max() < 1e-5


def test_a_servers_batches_on_a_gpu_have_the_vectors_of_encode(pair):
    _, gpu = pair
    texts, names = real_texts(), [*gpu[0].tasks]
    batcher = Batcher(gpu, Limits(), batch_tokens=512)
    batcher.start()
    try:
        asked = [(text, name) for text in texts for name in names]
        futures = [batcher.submit([text], [len(text)], name) for text, name in asked]
        found = np.stack([future.result()[0] for future in futures])
    finally:
        batcher.close()
    wanted = st_jv5.encode_mixed(gpu, [t for t, _ in asked], [n for _, n in asked])
    assert np.abs(found - wanted).max() < 1e-5


def test_the_engines_of_a_gpu_are_torchs_and_others_are_refused(pair):
    _, gpu = pair
    plain = st_jv5.encode(gpu, real_texts(), task="retrieval")
    half = st_jv5.encode(gpu, real_texts(), task="retrieval", engine="bfloat16")
    assert (plain * half).sum(1).min() > 0.99  # random weights of 48 dims
    if CUDA:
        with pytest.raises(ValueError, match="runs on a CPU"):
            st_jv5.encode(gpu, real_texts(), task="retrieval", engine="onnx")


LOSSES = {
    "retrieval": lambda m, s: st_jv5.losses.retrieval_loss(
        m, TEACHER, store=s, dims=DIMS, learn_temperature=True, mask_equal_texts=True
    ),
    "retrieval in chunks": lambda m, s: st_jv5.losses.retrieval_loss(
        m, TEACHER, store=s, dims=DIMS, mini_batch_tokens=256
    ),
    "text-matching": lambda m, s: st_jv5.losses.text_matching_loss(
        m, TEACHER, store=s, dims=DIMS, dims_per_step=2
    ),
    "clustering": lambda m, s: st_jv5.losses.clustering_loss(
        m, TEACHER, store=s, dims=DIMS, mini_batch_size=8
    ),
    "classification": lambda m, s: st_jv5.losses.classification_loss(
        m, dims=DIMS, mini_batch_tokens=256
    ),
}


def gradients(model, name, store):
    st_jv5.train_task(model, name.split()[0])
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.manual_seed(0)
    loss = LOSSES[name](model, store)
    columns = 3 if name == "classification" else 2
    features, labels = batch(model, store, columns)
    torch.stack([*loss(features, labels[:, :2]).values()]).sum().backward()
    return {n: p.grad.cpu() for n, p in loss.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_cpus(pair, space, name):
    cpu, gpu = (gradients(model, name, space) for model in pair)
    assert cpu.keys() == gpu.keys()
    for key, one in cpu.items():
        assert (one - gpu[key]).norm() <= 1e-4 * one.norm() + 1e-7, key


COMPILER = "inductor" if CUDA else "eager"  # a CPU's own takes minutes


def test_compiled_layers_have_the_gradients_of_plain_ones(backbones, space):
    model = adapted(backbones["eurobert"]).to(DEVICE)
    plain = gradients(model, "retrieval in chunks", space)
    model.zero_grad()
    with compiled_layers(model, COMPILER):
        compiled = gradients(model, "retrieval in chunks", space)
    assert plain.keys() == compiled.keys()
    for key, one in plain.items():
        assert (one - compiled[key]).norm() <= 1e-4 * one.norm() + 1e-7, key


@pytest.mark.parametrize("compiled", [False, True])
def test_chunks_that_are_computed_again_draw_the_same_dropout(backbones, space, compiled):
    model = st_jv5.new_student(backbones["eurobert"], matryoshka_dims=DIMS).to(DEVICE)
    st_jv5.add_task(model, "retrieval", rank=4, dropout=0.3)
    for tensor in model[0].adapter_tensors("retrieval").values():
        torch.nn.init.normal_(tensor, std=0.2)
    seen, stock = [], model.forward

    def forward(features, **kwargs):
        output = stock(features, **kwargs)
        seen.append(output["sentence_embedding"].detach().clone())
        return output

    model.forward = forward
    model.train()
    loss = st_jv5.losses.retrieval_loss(
        model, TEACHER, store=space, dims=DIMS, mini_batch_tokens=256
    )
    features, labels = batch(model, space)
    with compiled_layers(model, COMPILER) if compiled else nullcontext():
        total = sum(loss(features, labels).values())
        count = len(seen)
        total.backward()
    assert count > 2
    assert len(seen) == 2 * count
    assert all(torch.equal(a, b) for a, b in zip(seen[:count], seen[count:], strict=True))


def test_a_teachers_vectors_arrive_on_the_device(space):
    rows = torch.tensor([[0, 1], [2, -1]], device=DEVICE)
    found = space.gather(rows, missing_ok=True, device=torch.device(DEVICE))
    expected = space.gather(rows.cpu(), missing_ok=True)
    assert found.device.type == DEVICE
    assert torch.equal(found.cpu().nan_to_num(7), expected.nan_to_num(7))


@pytest.mark.parametrize(
    ("task", "dtype"),
    [("base", torch.float16), ("base", torch.bfloat16), ("retrieval", torch.bfloat16)],
)
def test_training_lowers_the_loss_whatever_the_base_was_loaded_in(backbones, space, task, dtype):
    """AdamW on half-precision weights gave NaN in its second step, or moved few of them."""
    torch.manual_seed(0)
    model = st_jv5.new_student(backbones["bert"], matryoshka_dims=DIMS, dtype=dtype).to(DEVICE)
    if task != "base":
        st_jv5.add_task(model, task, rank=4, dropout=0.0)
    st_jv5.train_task(model, task)
    loss = st_jv5.losses.clustering_loss(model, TEACHER, store=space, dims=DIMS)
    learning = [p for p in loss.parameters() if p.requires_grad]
    assert {p.dtype for p in learning} == {torch.float32}
    optimizer = torch.optim.AdamW(learning, lr=1e-2 if task != "base" else 1e-3)
    losses = []
    for _ in range(8):
        features, labels = batch(model, space)
        with torch.autocast(DEVICE, torch.bfloat16):
            value = loss(features, labels)["distill"]
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(value.detach()))
    assert losses[-1] < losses[0]


class _StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def train(backbone, store, folder, resume=False, stop=None, strict=False):
    torch.manual_seed(0)
    model = st_jv5.new_student(backbone, matryoshka_dims=DIMS)
    st_jv5.add_task(model, "retrieval", rank=4)
    texts = real_texts()[:64]
    labels = store.rows(texts).reshape(2, -1).T.tolist()
    data = Dataset.from_dict({"query": texts[:32], "positive": texts[32:], "label": labels})
    args = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=8,
        bf16=CUDA,
        learning_rate=1e-3,
        save_strategy="steps",
        save_steps=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not CUDA,
        full_determinism=strict,
    )
    loss = st_jv5.losses.retrieval_loss(
        model, TEACHER, store=store, dims=DIMS, mini_batch_tokens=256
    )
    trainer = st_jv5.AdapterTrainer(model, args, tasks="retrieval", train_dataset=data, loss=loss)
    if stop:
        trainer.add_callback(_StopAt(stop))
    trainer.train(resume_from_checkpoint=st_jv5.trainer.last_checkpoint(folder) if resume else None)
    return {k: v.detach().cpu() for k, v in model[0].adapter_tensors("retrieval").items()}


@only_cuda
def test_a_run_that_was_stopped_resumes_to_the_same_bits_if_determinism_is_asked_for(
    backbones, space, tmp_path, monkeypatch
):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        whole = train(backbones["eurobert"], space, tmp_path / "a", strict=True)
        train(backbones["eurobert"], space, tmp_path / "b", stop=4, strict=True)
        resumed = train(backbones["eurobert"], space, tmp_path / "b", resume=True, strict=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())


@only_cuda
def test_a_step_waits_for_the_gpu_as_often_whatever_its_chunks(pair, space):
    _, model = pair
    st_jv5.train_task(model, "retrieval")
    model.train()
    features, labels = batch(model, space)
    counts = []
    for tokens in (1024, 128):
        loss = st_jv5.losses.retrieval_loss(
            model, TEACHER, store=space, dims=DIMS, mini_batch_tokens=tokens
        )
        for number in range(2):
            with told_of_waits() as found:
                sum(loss([dict(one) for one in features], labels).values()).backward()
            if number:
                counts.append(sum("synchronizing" in str(w.message) for w in found))
    if model[0].model.config.model_type != "mpnet":  # which asks once a forward
        assert counts[1] == counts[0]
        assert counts[0] <= 6


@only_cuda
def test_memory_does_not_grow_with_the_batch(backbones, space):
    peaks = []
    for repeat in (1, 8):
        model = adapted(backbones["eurobert"]).to(DEVICE)
        st_jv5.train_task(model, "retrieval")
        model.train()
        loss = st_jv5.losses.retrieval_loss(
            model, TEACHER, store=space, dims=DIMS, mini_batch_tokens=512
        )
        features, labels = batch(model, space)
        features = [
            {k: v.repeat(repeat, 1) if isinstance(v, torch.Tensor) else v for k, v in one.items()}
            for one in features
        ]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        sum(loss(features, labels.repeat(repeat, 1)).values()).backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 1.5 * peaks[0]


def test_the_doctor_speaks_of_the_device():
    line = next(line for line in doctor() if line.startswith("device: "))
    assert ("cpu" in line) != torch.cuda.is_available()
