"""Algebra on adapters: train one, take, put, average, merge."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

import st_jv5
from st_jv5 import cli
from st_jv5.modules.adapter_router import AdapterRouter
from st_jv5.task_table import TASKS
from tests.conftest import MINILM, with_adapters


def bits(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def updates(adapter: st_jv5.adapters.Adapter) -> list[torch.Tensor]:
    return [
        adapter.tensors[key.replace("lora_A", "lora_B")].double() @ tensor.double()
        for key, tensor in adapter.tensors.items()
        if ".lora_A." in key
    ]


def test_train_task_frees_one_adapter_and_base_frees_the_backbone(model):
    st_jv5.train_task(model, "clustering")
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    assert free
    assert all(".clustering." in name for name in free)
    st_jv5.train_task(model, "base")
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    assert free
    assert not any(".lora_" in name for name in free)


def test_a_training_step_moves_only_the_chosen_adapter(model, texts, tmp_path):
    st_jv5.add_task(model, "legal", rank=4)
    before = bits(model)
    rows = Dataset.from_dict({"query": texts[:16], "positive": texts[16:32]})
    args = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=8,
        learning_rate=0.1,
        report_to="none",
        use_cpu=True,
        prompts=st_jv5.trainer.trainer_prompts(model, "legal", rows),
    )
    loss = MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model=model, args=args, train_dataset=rows, loss=loss).train()
    moved = {name for name, tensor in bits(model).items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if ".legal." in name}


def test_encode_train_encode_works(model, texts, tmp_path):
    before = model.encode(texts, task="clustering")
    test_a_training_step_moves_only_the_chosen_adapter(model, texts, tmp_path)
    assert np.array_equal(model.encode(texts, task="clustering"), before)
    assert model.encode(texts, task="legal").shape == (64, 48)


def test_taken_and_put_into_another_copy_gives_the_same_vectors(backbones, model, texts, tmp_path):
    st_jv5.adapters.save_adapter(model, "retrieval", tmp_path / "taken")
    other = st_jv5.new_student(backbones["eurobert"])
    st_jv5.adapters.load_adapter(other, tmp_path / "taken")
    assert st_jv5.tasks(other) == ["retrieval"]
    expected = model.encode(texts, task="query")
    assert np.array_equal(other.encode(texts, task="query"), expected)


def test_an_adapter_of_another_scale_does_not_replace_one(backbones, model, tmp_path):
    other = st_jv5.new_student(backbones["eurobert"])
    st_jv5.add_task(other, "retrieval", rank=4, alpha=8)
    st_jv5.adapters.save_adapter(other, "retrieval", tmp_path)
    with pytest.raises(ValueError, match="has lora_alpha 8, but this model's 'retrieval' has 4"):
        st_jv5.adapters.load_adapter(model, tmp_path)


def test_another_base_is_refused(backbones, model, tmp_path):
    st_jv5.adapters.save_adapter(model, "retrieval", tmp_path)
    other = st_jv5.new_student(backbones["eurobert"])
    with torch.no_grad():
        next(iter(other[0].base_parameters())).flatten()[0] += 1
    with pytest.raises(ValueError, match="trained on another base: its base has sha256"):
        st_jv5.adapters.load_adapter(other, tmp_path)


def test_a_base_loaded_in_bfloat16_is_still_the_same_base(saved, model, tmp_path):
    st_jv5.adapters.save_adapter(model, "clustering", tmp_path / "taken")
    half = SentenceTransformer(saved, model_kwargs={"dtype": torch.bfloat16})
    st_jv5.adapters.load_adapter(half, tmp_path / "taken")
    assert half[0].base_sha256() == model[0].base_sha256()
    st_jv5.train_task(half, "base")
    assert half[0].base_sha256() != model[0].base_sha256()


# ----------------------------------------------------------------------------------- averaging


@pytest.mark.parametrize("method", ["product", "factors"])
def test_averaging_equal_checkpoints_is_the_identity(model, tmp_path, method):
    st_jv5.adapters.save_adapter(model, "retrieval", tmp_path)
    mean, lost = st_jv5.adapters.average_adapters([tmp_path] * 3, weights=[1, 2, 5], method=method)
    original = st_jv5.adapters.Adapter.load(tmp_path)
    for one, other in zip(updates(mean), updates(original), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert lost < 1e-12


def test_the_product_average_is_the_best_of_its_rank_and_says_what_it_lost(backbones, tmp_path):
    adapters = []
    for seed in range(2):
        student = st_jv5.new_student(backbones["bert"], layers=1)
        st_jv5.add_task(student, "retrieval", rank=4)
        generator = torch.Generator().manual_seed(seed)
        for tensor in student[0].adapter_tensors("retrieval").values():
            tensor.data = torch.randn(tensor.shape, generator=generator)
        st_jv5.adapters.save_adapter(student, "retrieval", tmp_path / str(seed))
        adapters.append(st_jv5.adapters.Adapter.load(tmp_path / str(seed)))
    mean, told = st_jv5.adapters.average_adapters([tmp_path / "0", tmp_path / "1"], weights=[1, 3])
    lost = total = 0.0
    for found, one, other in zip(updates(mean), *map(updates, adapters), strict=True):
        exact = 0.25 * one + 0.75 * other
        u, s, vh = torch.linalg.svd(exact, full_matrices=False)
        best = u[:, :4] * s[:4] @ vh[:4]
        assert torch.allclose(found, best, atol=1e-4)
        lost += float((exact - best).square().sum())
        total += float(exact.square().sum())
    assert told == pytest.approx(lost / total, rel=1e-4)
    assert 0.01 < told < 0.5
    factors, _ = st_jv5.adapters.average_adapters(
        [tmp_path / "0", tmp_path / "1"], method="factors"
    )
    assert not torch.allclose(updates(factors)[0], updates(mean)[0], atol=0.1)


def test_averages_that_cannot_be_are_refused(model, tmp_path):
    st_jv5.adapters.save_adapter(model, "retrieval", tmp_path / "a")
    st_jv5.adapters.save_adapter(model, "clustering", tmp_path / "b")
    with pytest.raises(ValueError, match="no folders"):
        st_jv5.adapters.average_adapters([])
    with pytest.raises(ValueError, match="b has another task than"):
        st_jv5.adapters.average_adapters([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ValueError, match="as many weights"):
        st_jv5.adapters.average_adapters([tmp_path / "a"], weights=[1, 2])
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config.json"):
        st_jv5.adapters.average_adapters([tmp_path])


# ------------------------------------------------------------------------------------- merging


def test_a_merged_task_is_a_stock_model_with_the_same_vectors(
    backbones, architecture, texts, tmp_path
):
    model = with_adapters(st_jv5.new_student(backbones[architecture]))
    base = bits(model)
    for task in TASKS:
        stock = st_jv5.merge_task(model, task)
        stock.save_pretrained(str(tmp_path / task))
        loaded = SentenceTransformer(str(tmp_path / task))
        assert [type(module) for module in loaded] == [Transformer, Pooling, Normalize]
        expected = model.encode(texts, task=task)
        np.testing.assert_allclose(loaded.encode(texts), expected, atol=1e-5)
    query = SentenceTransformer(str(tmp_path / "retrieval")).encode_query(texts)
    np.testing.assert_allclose(query, model.encode(texts, task="query"), atol=1e-5)
    assert all(torch.equal(tensor, base[name]) for name, tensor in bits(model).items())


def test_a_merged_task_brings_its_own_prompts(student, texts):
    st_jv5.add_task(student, "legal", prompts={"query": "Frage: ", "document": "Text: "})
    stock = st_jv5.merge_task(student, "legal")
    assert stock.prompts == {"query": "Frage: ", "document": "Text: "}
    expected = student.encode(texts, task="legal", prompt_name="query")
    np.testing.assert_allclose(stock.encode(texts, prompt_name="query"), expected, atol=1e-5)


def test_inside_merged_every_batch_is_merged_and_all_else_goes_on(model, texts, tmp_path):
    base = bits(model)
    short = texts[:1]
    expected = {name: model.encode(short, task=name) for name in TASKS}
    with st_jv5.adapters.merged(model, "clustering"):
        found = model.encode(short, task="clustering")
        assert not np.array_equal(found, expected["clustering"])
        np.testing.assert_allclose(found, expected["clustering"], atol=1e-5)
        assert np.array_equal(model.encode(short, task="retrieval"), expected["retrieval"])
        model.save_pretrained(str(tmp_path))
    assert np.array_equal(model.encode(short, task="clustering"), expected["clustering"])
    assert all(torch.equal(tensor, base[name]) for name, tensor in bits(model).items())
    saved = SentenceTransformer(str(tmp_path))
    assert np.array_equal(saved.encode(short, task="clustering"), expected["clustering"])


@pytest.fixture(scope="module")
def minilm(tmp_path_factory) -> str:
    """A folder of MiniLM with two adapters whose updates show."""
    folder = tmp_path_factory.mktemp("minilm")
    model = st_jv5.new_student(MINILM)
    for seed, name in enumerate(("retrieval", "clustering")):
        st_jv5.add_task(model, name)
        generator = torch.Generator().manual_seed(seed)
        for key, tensor in model[0].adapter_tensors(name).items():
            if ".lora_B." in key:
                tensor.data = 0.02 * torch.randn(tensor.shape, generator=generator)
    model.save_pretrained(str(folder))
    return str(folder)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = one.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(1) / norms


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 1 - 1e-6), (torch.bfloat16, 0.9999)])
def test_merged_and_unmerged_agree_and_the_base_keeps_its_bits(minilm, texts, dtype, least):
    model = SentenceTransformer(minilm, model_kwargs={"dtype": dtype})
    base = bits(model)
    exact = model.encode(texts, task="retrieval")
    assert cosines(exact, model.encode(texts, task="base")).mean() < 0.985  # the adapter shows
    for some in (*[texts[:2]] * 4, texts):
        with st_jv5.adapters.merged(model, "retrieval"):
            found = model.encode(some, task="retrieval")
    assert all(torch.equal(tensor, base[name]) for name, tensor in bits(model).items())
    stock = st_jv5.merge_task(model, "retrieval").encode(texts)
    for vectors in (found, stock):
        # The mean: each bfloat16 forward, merged or not, strays by as much from float32's.
        assert cosines(exact, vectors).mean() > least
        if dtype == torch.float32:
            np.testing.assert_allclose(vectors, exact, atol=1e-5)


def test_a_thousand_task_switches_leave_the_bits_unchanged(model, texts):
    before = bits(model)
    names = [*TASKS, "base"]
    expected = {name: model.encode(texts[:2], task=name) for name in names}
    for turn in range(1000):
        name = names[turn * 7 % 5]
        if turn % 10 == 0:
            with st_jv5.adapters.merged(model, name):
                model.encode(texts[:2], task=name)
        else:
            assert np.array_equal(model.encode(texts[:2], task=name), expected[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in bits(model).items())


def test_names_that_cannot_be_tasks_are_refused(model):
    for name in ("a/b", "", "query", "base", "retrieval", "keys"):
        with pytest.raises(ValueError, match=r"reserved|already|a task's name is"):
            st_jv5.add_task(model, name)
    with pytest.raises(ValueError, match="need a 'document' entry"):
        st_jv5.add_task(model, "mine", prompts={"query": "Q: "})


def test_target_modules_may_be_chosen(student):
    st_jv5.add_task(student, "slim", target_modules=["q_proj", "v_proj"])
    layers = {path.split(".")[-1] for path, _ in student[0].lora_layers()}
    assert layers == {"q_proj", "v_proj"}


def test_a_further_adapter_is_what_peft_makes(backbones, monkeypatch):
    def further() -> AdapterRouter:
        torch.manual_seed(0)
        student = st_jv5.new_student(backbones["eurobert"])
        st_jv5.add_task(student, "clustering")
        names = ["q_proj", "up_proj"]
        st_jv5.add_task(student, "retrieval", rank=4, alpha=8, target_modules=names)
        return student[0]

    def rest(router: AdapterRouter) -> tuple[object, ...]:
        layers = {at: one for at, one in router.lora_layers() if one.parts("retrieval")}
        dropouts = {at: one.lora_dropout["retrieval"].p for at, one in layers.items()}
        scales = {at: one.scaling["retrieval"] for at, one in layers.items()}
        learning = {name for name, tensor in router.named_parameters() if tensor.requires_grad}
        return dropouts, scales, learning, router.take_adapter("retrieval").config.to_dict()

    ours = further()
    monkeypatch.setattr(AdapterRouter, "_adapted_layers", lambda *_: [])
    pefts = further()
    assert rest(ours) == rest(pefts)
    assert len(ours.adapter_tensors("retrieval")) == 2 * 2 * 3  # halves, names, blocks
    torch.testing.assert_close(
        ours.adapter_tensors("retrieval"), pefts.adapter_tensors("retrieval"), rtol=0, atol=0
    )


def test_a_further_adapter_may_name_layers_that_have_none(student, texts):
    st_jv5.add_task(student, "clustering", target_modules=["q_proj"])
    st_jv5.add_task(student, "retrieval", target_modules=["q_proj", "up_proj"])
    layers = {key.split(".")[-3] for key in student[0].adapter_tensors("retrieval")}
    assert layers == {"q_proj", "up_proj"}


def test_adding_an_adapter_leaves_the_one_that_learns_learning(model, tmp_path):
    st_jv5.adapters.save_adapter(model, "clustering", tmp_path / "clustering")
    st_jv5.adapters.remove_task(model, "clustering")
    st_jv5.train_task(model, "retrieval")
    st_jv5.adapters.load_adapter(model, tmp_path / "clustering")
    learning = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    assert learning
    assert all(".retrieval." in name for name in learning)


def calls_of(run: Callable[[], object]) -> int:
    """The functions that are called while it runs: a time that no other process changes."""
    count = 0

    def one_more(*_: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(one_more)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


def test_twice_the_adapters_take_about_twice_as_long_to_save_and_load(student, tmp_path):
    saves, loads = [], []
    for number in range(40):
        st_jv5.add_task(student, f"task-{number}", rank=1)
        if number + 1 in (20, 40):
            folder = str(tmp_path / str(number))
            save = partial(student.save_pretrained, folder, create_model_card=False)
            saves.append(calls_of(save))
            loads.append(calls_of(partial(SentenceTransformer, folder)))
    for twenty, forty in (saves, loads):  # where each adapter walks all others it is four times
        assert forty < 2.6 * twenty, (saves, loads)


def test_a_save_hashes_the_base_once(model, tmp_path, monkeypatch):
    hashed = []
    hash_of = AdapterRouter._sha256_of_weights
    monkeypatch.setattr(
        AdapterRouter, "_sha256_of_weights", lambda self: hashed.append(1) or hash_of(self)
    )
    model.save_pretrained(str(tmp_path / "m"), create_model_card=False)
    assert len(hashed) == 1


def test_models_of_others_are_refused(texts):
    with pytest.raises(ValueError, match="starts with Transformer, not with an AdapterRouter"):
        st_jv5.tasks(SentenceTransformer(MINILM))


# ------------------------------------------------------------------------------ from the shell


def test_the_command_averages_checkpoints(model, tmp_path, capsys):
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}" / "adapters" / "retrieval"
        st_jv5.adapters.save_adapter(model, "retrieval", folder)
        for tensor in model[0].adapter_tensors("retrieval").values():
            tensor.data = tensor.data + 0.1
    folders = [str(tmp_path / f"checkpoint-{step}") for step in (1, 2)]
    out = str(tmp_path / "mean")
    cli.main(["average", *folders, "--weights", "1", "3", "--out", out])
    told = capsys.readouterr().out
    expected, lost = st_jv5.adapters.average_adapters(folders, weights=[1, 3])
    assert told.startswith(
        f"retrieval: the mean of 2 adapters, factored to rank 4, which loses {lost:.1%}"
    )
    found = st_jv5.adapters.Adapter.load(out)
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name], tensor)
    with pytest.raises(SystemExit, match="holds an adapter already; choose another --out"):
        cli.main(["average", *folders, "--out", out])
    with pytest.raises(SystemExit, match=r"error: .*no adapter_config.json"):
        cli.main(["average", str(tmp_path), "--out", str(tmp_path / "other")])


def test_a_checkpoint_of_several_adapters_has_to_be_told_which(model, tmp_path):
    for name in ("retrieval", "clustering"):
        st_jv5.adapters.save_adapter(model, name, tmp_path / "adapters" / name)
    with pytest.raises(ValueError, match="holds several adapters; name one of"):
        st_jv5.adapters.Adapter.load(tmp_path)
