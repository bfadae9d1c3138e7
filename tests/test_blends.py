"""Several adapters at once: as weights by task in one call, and as an adapter of its own."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from peft import LoraConfig
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5.export import export
from st_jv5.task_table import Blend, Task
from tests.conftest import adapted

SEVERAL = (
    {"retrieval": 0.7, "classification": 0.3},
    {"clustering": 1.5, "text-matching": -0.5},
    {"classification": 0.25, "base": 0.75},
)


@pytest.fixture
def wide(model: SentenceTransformer) -> SentenceTransformer:
    """In float64, where only a wrong sum shows: this model's float32 strays by more than 1e-6."""
    return model.double()


def summed(model: SentenceTransformer, backbone: str, weights: dict[str, float]):
    """A float64 model without adapters: its W + the sum of weight * scaling * B A."""
    plain = st_jv5.new_student(backbone).double()
    layers = dict(plain[0].model.named_modules())
    for name, weight in weights.items():
        if name == "base":
            continue
        config = model[0].model.peft_config[name]
        scaling = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
        tensors = model[0].adapter_tensors(name)
        for key, a in tensors.items():
            if ".lora_A." in key:
                b = tensors[key.replace("lora_A", "lora_B")]
                path = key.removeprefix("base_model.model.").split(".lora_A.")[0]
                layers[path].weight.data += weight * scaling * b.double() @ a.double()
    return plain


@pytest.mark.parametrize("weights", SEVERAL, ids=str)
def test_a_blend_is_the_weighted_sum_of_updates(wide, backbones, texts, weights):
    expected = summed(wide, backbones["eurobert"], weights).encode(texts)
    alone = [wide.encode(texts, task=name) for name in weights]
    assert all(abs(expected - vectors).max() > 0.05 for vectors in alone)
    merged = wide.encode(texts, task=weights)
    assert wide[0].blend(weights) in wide[0].merging
    wide[0].merging.least_tokens = None
    unmerged = wide.encode(texts, task=weights)
    st_jv5.blend_tasks(wide, "mine", weights)
    for found in (
        merged,
        unmerged,
        st_jv5.encode(wide, texts, task=weights),
        st_jv5.encode_mixed(wide, texts, [weights] * len(texts)),
        st_jv5.merge_task(wide, weights).encode(texts),
        wide.encode(texts, task="mine"),
        st_jv5.merge_task(wide, "mine").encode(texts),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("architecture", ["bert", "qwen3", "mpnet"])
def test_blends_are_exact_on_other_backbones(backbones, architecture, texts):
    model = adapted(backbones[architecture]).double()
    expected = summed(model, backbones[architecture], SEVERAL[0]).encode(texts)
    np.testing.assert_allclose(model.encode(texts, task=SEVERAL[0]), expected, atol=1e-6)


def test_threads_may_use_different_blends_at_once(wide, backbones, texts):
    tasks = [*SEVERAL, {"retrieval": 1.0}, {"base": 1.0}]
    expected = [summed(wide, backbones["eurobert"], task).encode(texts) for task in tasks]

    def work(turn: int) -> tuple[int, np.ndarray]:
        number = turn * 3 % len(tasks)
        return number, wide.encode(texts, task=tasks[number], batch_size=(4, 64)[turn % 2])

    with ThreadPoolExecutor(6) as pool:
        for number, found in pool.map(work, range(20)):
            np.testing.assert_allclose(found, expected[number], atol=1e-6)


def test_a_blend_made_an_adapter_survives_saving_and_every_export(model, texts, tmp_path):
    expected = model.encode(texts, task=SEVERAL[0])
    asked = model.encode(texts, task=SEVERAL[0], prompt_name="query")
    assert abs(expected - asked).max() > 0.01
    st_jv5.blend_tasks(model, "mine", SEVERAL[0])
    model.save_pretrained(str(tmp_path / "model"))
    saved = SentenceTransformer(str(tmp_path / "model"))
    assert st_jv5.tasks(saved)[-1] == "mine"
    assert saved[0].model.peft_config["mine"].r == 8
    np.testing.assert_allclose(saved.encode(texts, task="mine"), expected, atol=1e-6)
    found = saved.encode(texts, task="mine", prompt_name="query")
    np.testing.assert_allclose(found, asked, atol=1e-6)
    (parity,) = export(saved, "mine", tmp_path / "merged", kind="merged", texts=texts[:8])
    assert parity.least > 1 - 1e-6
    stock = SentenceTransformer(str(tmp_path / "merged"))
    np.testing.assert_allclose(stock.encode(texts), expected, atol=1e-6)
    np.testing.assert_allclose(stock.encode(texts, prompt_name="query"), asked, atol=1e-6)
    st_jv5.adapters.save_adapter(saved, "mine", tmp_path / "taken")
    st_jv5.adapters.load_adapter(model, tmp_path / "taken")
    np.testing.assert_allclose(model.encode(texts, task="mine"), expected, atol=1e-6)
    st_jv5.train_task(model, "mine")
    assert sum(p.requires_grad for p in model.parameters()) == 2 * 7 * 3


def test_adapters_of_other_scalings_and_layers_blend_exactly(wide, backbones, texts, tmp_path):
    for name, config in {
        "few": LoraConfig(r=3, lora_alpha=12, target_modules=["q_proj", "down_proj"]),
        "root": LoraConfig(r=4, lora_alpha=4, use_rslora=True, target_modules=["v_proj"]),
    }.items():
        wide[0].add_adapter(Task(name), config)
        for tensor in wide[0].adapter_tensors(name).values():
            tensor.data = 0.2 * torch.randn(tensor.shape)
    weights = {"few": 0.5, "root": 0.8}
    expected = summed(wide, backbones["eurobert"], weights).encode(texts)
    np.testing.assert_allclose(wide.encode(texts, task=weights), expected, atol=1e-6)
    st_jv5.blend_tasks(wide, "both", weights)
    wide.save_pretrained(str(tmp_path))
    saved = SentenceTransformer(str(tmp_path)).double()
    touched = {path.split(".")[-1] for path, layer in saved[0].lora_layers() if layer.parts("both")}
    assert touched == {"q_proj", "down_proj", "v_proj"}
    np.testing.assert_allclose(saved.encode(texts, task="both"), expected, atol=1e-6)


def test_blends_leave_nothing_in_the_model_and_few_copies(model, texts, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = model.encode(texts, task={"retrieval": 0.1, "clustering": 0.9})
    model.encode(texts, task="retrieval")
    for step in range(2, 10):
        model.encode(texts, task={"retrieval": step / 10, "clustering": 1 - step / 10})
    kept = model[0].merging
    assert len(kept) == kept.most_blends + 1
    assert "retrieval" in kept
    assert {"retrieval": 0.9, "clustering": 1 - 0.9} in [*kept._kept]
    with st_jv5.adapters.merged(model, SEVERAL[0]):
        one = model.encode(texts[:1], task=SEVERAL[0])
        for step in range(5):
            model.encode(texts, task={"retrieval": step + 2})
        assert Blend(SEVERAL[0]) in kept
    np.testing.assert_allclose(model.encode(texts[:1], task=SEVERAL[0]), one, atol=1e-6)
    again = model.encode(texts, task={"clustering": 0.9, "retrieval": 0.1})
    assert np.array_equal(again, first)  # whatever the order of its tasks, and what ran before
    kept.most_blends = 0
    kept.clear()
    np.testing.assert_allclose(model.encode(texts, task=SEVERAL[0]), model.encode(
        texts, task=dict(reversed(SEVERAL[0].items()))), atol=0)  # fmt: skip
    assert len(kept) == 0
    assert st_jv5.tasks(model) == ["retrieval", "text-matching", "clustering", "classification"]
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other.encode(texts[:1], task=SEVERAL[0]), model.encode(
            texts[:1], task=SEVERAL[0]))  # fmt: skip


def test_a_changed_adapter_is_seen_in_its_blends(wide, texts):
    before = wide.encode(texts, task=SEVERAL[0])
    with torch.no_grad():
        for tensor in wide[0].adapter_tensors("classification").values():
            tensor.mul_(2)
    after = wide.encode(texts, task=SEVERAL[0])
    assert abs(after - before).max() > 0.01
    wide[0].merging.least_tokens = None
    np.testing.assert_allclose(wide.encode(texts, task=SEVERAL[0]), after, atol=1e-6)


def test_mixed_lists_and_prompts_take_blends(model, texts, monkeypatch):
    asking = {"query": 0.7, "classification": 0.3}
    tasks = [[SEVERAL[0], asking, "clustering", "base"][i % 4] for i in range(len(texts))]
    for shared in (0, 10**6):  # a batch per task; one batch, a row each with its adapter
        monkeypatch.setattr("st_jv5.encoding.SHARED_TOKENS", shared)
        found = st_jv5.encode_mixed(model, texts, tasks)
        for text, task, row in zip(texts, tasks, found, strict=True):
            np.testing.assert_allclose(row, model.encode([text], task=task)[0], atol=1e-6)
    named = model.encode(texts, task=SEVERAL[0], prompt_name="query")
    assert np.array_equal(model.encode(texts, task=asking), named)
    model[0].default_task = SEVERAL[0]
    assert np.array_equal(model.encode(texts, prompt_name="query"), named)
    with pytest.raises(ValueError, match=r"default task is a blend.*st_jv5\.blend_tasks"):
        model[0].save("never")


def test_of_two_prompts_with_one_name_the_heavier_adapters_counts(student, texts):
    st_jv5.add_task(student, "de", prompts={"query": "Frage: ", "document": "Text: "})
    st_jv5.add_task(student, "en", prompts={"document": "Passage: "})
    router = student[0]
    assert router.prompt_for({"de": 0.4, "en": 0.6}, "Document: ") == "Passage: "
    assert router.prompt_for({"de": 0.4, "en": 0.6}, "Query: ") == "Frage: "
    assert router.prompt_for({"de": -0.6, "en": 0.4}, "Document: ") == "Text: "
    assert router.prompt_for({"base": 1}, "Query: ") == "Query: "
    st_jv5.blend_tasks(student, "both", {"de": 0.4, "en": 0.6})
    assert router.tasks["both"].prompts == {"query": "Frage: ", "document": "Passage: "}
    st_jv5.blend_tasks(student, "own", {"de": 1}, prompts={"document": "Mine: "})
    assert router.tasks["own"].prompts == {"document": "Mine: "}


def test_theta_of_a_blend_is_known_where_its_adapters_agree(model):
    model[0].theta_train |= {"retrieval": 1e4, "clustering": 1e4, "classification": 2e5}
    st_jv5.blend_tasks(model, "one", {"retrieval": 1, "clustering": 1})
    st_jv5.blend_tasks(model, "two", {"retrieval": 1, "classification": 1})
    assert model[0].theta_train["one"] == 1e4
    assert "two" not in model[0].theta_train


def test_trivial_blends_are_what_they_are(model, texts):
    for weights, task in (
        ({"retrieval": 1}, "retrieval"),
        ({"retrieval": 1.0, "clustering": 0}, "retrieval"),
        ({"base": 0.3}, "base"),
        ({"retrieval": 0.0}, "base"),
    ):
        assert np.array_equal(model.encode(texts, task=weights), model.encode(texts, task=task))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({}, "a blend needs tasks and their weights"),
        ({"retreival": 1.0}, r"unknown task 'retreival'.*did you mean 'retrieval'"),
        ({None: 1.0}, "unknown task None"),
        ({"retrieval": float("nan")}, "weight of 'retrieval' must be a finite number, not nan"),
        ({"retrieval": float("inf")}, "must be a finite number, not inf"),
        ({"retrieval": "0.7"}, "must be a finite number, not '0.7'"),
        ({"retrieval": True}, "must be a finite number, not True"),
        ({"retrieval": 0.5, "query": 0.5}, r"names retrieval twice; add the weights up"),
    ],
)
def test_blends_that_cannot_be_are_refused(model, weights, said):
    for wrong in (
        lambda: model.encode(["a"], task=weights),
        lambda: st_jv5.encode(model, ["a"], task=weights),
        lambda: st_jv5.encode_mixed(model, ["a"], [weights]),
        lambda: st_jv5.blend_tasks(model, "mine", weights),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()


def test_names_and_uses_that_cannot_be_are_refused(model, tmp_path):
    for name in ("a/b", "", "query", "base", "keys"):
        with pytest.raises(ValueError, match=r"reserved|already|a task's name is"):
            st_jv5.blend_tasks(model, name, SEVERAL[0])
    with pytest.raises(ValueError, match="retrieval already; choose another name"):
        st_jv5.blend_tasks(model, "retrieval", SEVERAL[0])
    with pytest.raises(ValueError, match=r"is the base alone; encode with task='base'"):
        st_jv5.blend_tasks(model, "mine", {"retrieval": 0, "base": 1})
    with pytest.raises(ValueError, match="need a 'document' entry"):
        st_jv5.blend_tasks(model, "mine", SEVERAL[0], prompts={"query": "Q: "})
    with pytest.raises(ValueError, match=r"cannot be trained.*st_jv5\.blend_tasks"):
        st_jv5.train_task(model, SEVERAL[0])
    with pytest.raises(ValueError, match=r"cannot be trained.*st_jv5\.blend_tasks"):
        st_jv5.train_task(model, [SEVERAL[0]])
    with pytest.raises(ValueError, match=r"unknown task \{'retrieval'"):
        export(model, SEVERAL[0], tmp_path / "out", kind="merged")
    assert st_jv5.tasks(model) == ["retrieval", "text-matching", "clustering", "classification"]
