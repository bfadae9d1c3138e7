"""Heads give every task's vectors from one forward, and from vectors without their texts."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5 import cli
from st_jv5.adapters import router_of
from st_jv5.encoding import encode, encode_all_tasks
from st_jv5.fingerprint import fingerprint
from st_jv5.folders.trust import check_folder
from st_jv5.heads import _linear, _trained, ridge
from st_jv5.modules.heads import heads_in
from st_jv5.precision import unit
from st_jv5.task_table import TASKS
from st_jv5.vectors import Corpus, VectorFolder, convert, encode_corpus, search
from tests.conftest import adapted, real_texts

SMALL = {"hidden": 16, "steps": 60}


def fitting() -> list[str]:
    return [f"{text[i:]} {i}" for text in real_texts() for i in range(8)]


@pytest.fixture(scope="session")
def with_heads_once(backbones, tmp_path_factory) -> str:
    model = adapted(backbones["eurobert"])
    st_jv5.fit_heads(model, fitting(), **SMALL)
    folder = tmp_path_factory.mktemp("heads")
    model.save_pretrained(str(folder))
    return str(folder)


@pytest.fixture
def headed(with_heads_once) -> SentenceTransformer:
    return SentenceTransformer(with_heads_once)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum(axis=1).mean())


def test_ridge_finds_a_linear_map_and_chooses_its_strength_by_rows_held_out():
    rng = np.random.default_rng(0)
    inputs, true = unit(rng.standard_normal((400, 6))), rng.standard_normal((6, 6))
    targets = unit(inputs @ true + 0.3)
    folds = np.arange(400) % 10
    weight, bias, told = ridge(inputs, targets, folds)
    assert told > 0.95
    assert cosine(unit(inputs @ weight + bias), targets) > told - 0.05
    noise = unit(rng.standard_normal((400, 6)))
    assert abs(ridge(inputs, noise, folds)[2]) < 0.2  # not what fits the rows themselves


def bent(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets that no linear map connects."""
    rng = np.random.default_rng(seed)
    inputs = unit(rng.standard_normal((4000, 8)))
    return inputs, unit(np.abs(inputs @ rng.standard_normal((8, 8))) - 0.5)


FOLDS = np.arange(4000) % 10


def test_a_hidden_layer_finds_a_map_that_is_not_linear_and_the_same_one_again():
    inputs, targets = bent()
    _, linear = _linear("a", inputs, targets, FOLDS)
    cpu = torch.device("cpu")
    found = [_trained("a", inputs, targets, FOLDS, 64, 300, False, cpu) for _ in range(2)]
    assert found[0][1] > linear + 0.1
    own, again = (head.state_dict() for head, _ in found)
    assert all(torch.equal(own[name], again[name]) for name in own)


@pytest.mark.parametrize("fast", [False, True])
def test_a_hidden_layer_is_trained_as_well_inside_a_callers_autocast(fast, monkeypatch):
    monkeypatch.setattr("st_jv5.heads.has_fast_bfloat16", lambda device: fast)
    inputs, targets = bent()

    def cosine() -> float:
        return _trained("a", inputs, targets, FOLDS, 64, 300, False, torch.device("cpu"))[1]

    alone = cosine()
    with torch.autocast("cpu", torch.bfloat16):
        assert cosine() == alone
    assert alone > _linear("a", inputs, targets, FOLDS)[1] + 0.1


def test_a_text_that_is_held_out_is_held_out_under_every_prompt_and_each_time_it_comes(
    model, monkeypatch
):
    seen, width = [], model.get_embedding_dimension()
    fitted = np.eye(width), np.zeros(width), 1.0
    monkeypatch.setattr("st_jv5.heads.ridge", lambda *rows: seen.append(rows) or fitted)
    texts = [f"text {i}" for i in range(401)]
    texts += texts[:400]
    st_jv5.fit_heads(model, texts, tasks=["retrieval"], hidden=0)
    ((base, _, folds),) = seen
    assert len(base) == len(folds) == 2 * len(texts)  # a query's prompt, and a document's
    held = {text for text, fold in zip(2 * texts, folds, strict=True) if fold == 0}
    assert held.isdisjoint(t for t, fold in zip(2 * texts, folds, strict=True) if fold)
    assert len(held) == 41


def test_a_hidden_layer_that_comes_no_nearer_is_left_out(model, monkeypatch):
    monkeypatch.setattr("st_jv5.heads._trained", lambda *_: (None, -1.0))
    st_jv5.fit_heads(model, fitting(), tasks=["clustering"])
    assert heads_in(model).hidden == {}


def test_heads_saved_before_there_were_hidden_layers_load(model, texts, tmp_path):
    st_jv5.fit_heads(model, fitting(), hidden=0)
    model.save_pretrained(str(tmp_path))
    path = tmp_path / "2_Heads/config.json"
    config = json.loads(path.read_text())
    assert config.pop("hidden") == {}
    path.write_text(json.dumps(config))
    again = SentenceTransformer(str(tmp_path))
    for one, other in zip(
        *(encode_all_tasks(m, texts, mode="head").values() for m in (model, again)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_head_is_nearer_to_its_adapter_than_the_base_is(headed, texts):
    base = encode(headed, texts, task="base")
    for task in TASKS:
        own = encode(headed, texts, task=task)
        assert cosine(encode(headed, texts, task=task, mode="head"), own) > cosine(base, own)


def test_every_way_to_a_head_gives_the_same_unit_vectors(headed, texts):
    found = encode_all_tasks(headed, texts, mode="head")
    assert list(found) == list(TASKS)
    for task, rows in found.items():
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
        stock = headed.encode(texts, task=task, mode="head")
        np.testing.assert_allclose(stock, rows, atol=1e-5)
        np.testing.assert_allclose(encode(headed, texts, task=task, mode="head"), rows, atol=1e-5)
    cut = encode_all_tasks(headed, texts, dim=8, mode="head")["clustering"]
    np.testing.assert_allclose(cut, unit(found["clustering"][:, :8]), atol=1e-6)


def test_a_model_that_is_set_to_cut_has_whole_heads(headed, texts):
    whole = encode_all_tasks(headed, texts, mode="head")["clustering"]
    headed.truncate_dim = 8
    for dim in (None, 8, 16):
        rows = encode_all_tasks(headed, texts, mode="head", dim=dim)["clustering"]
        np.testing.assert_allclose(rows, unit(whole[:, :8]), atol=1e-6)
    assert encode_all_tasks(headed, texts, mode="head", dim=4)["clustering"].shape[1] == 4
    rows = encode(headed, texts, task="clustering", mode="head")
    np.testing.assert_allclose(rows, unit(whole[:, :8]), atol=1e-5)
    st_jv5.fit_heads(headed, fitting(), tasks=["clustering"], **SMALL)
    assert (heads_in(headed).dim, headed.truncate_dim) == (48, 8)


def test_all_tasks_take_one_forward_of_the_base(headed, texts, monkeypatch):
    calls = []
    router = router_of(headed)
    real = type(router)._forward

    def spy(self, features, route, **kwargs):
        calls.append((route.adapter, len(features["input_ids"])))
        return real(self, features, route, **kwargs)

    monkeypatch.setattr(type(router), "_forward", spy)
    encode_all_tasks(headed, texts, mode="head")
    assert {adapter for adapter, _ in calls} == {None}
    assert sum(rows for _, rows in calls) == len(set(texts))


def test_a_head_gets_the_prompt_of_the_base(headed, texts):
    headed[0].tasks["clustering"].prompts["document"] = "Cluster: "
    base = encode(headed, texts, task="base")
    rows = st_jv5.encoding.head_vectors(headed, base, "clustering")
    np.testing.assert_allclose(
        headed.encode(texts, task="clustering", mode="head"), rows, atol=1e-5
    )
    query = encode(headed, texts, task="base", prompt_name="query")
    rows = st_jv5.encoding.head_vectors(headed, query, "retrieval")
    np.testing.assert_allclose(headed.encode(texts, task="query", mode="head"), rows, atol=1e-5)


def test_heads_are_saved_and_change_nothing_without_the_mode(headed, model, texts, tmp_path):
    np.testing.assert_array_equal(
        encode(headed, texts, task="retrieval"), encode(model, texts, task="retrieval")
    )
    assert fingerprint(headed) == fingerprint(model)  # an index of before fits
    assert fingerprint(headed, heads=True) != fingerprint(model, heads=True)
    headed.save_pretrained(str(tmp_path / "again"))
    assert "2_Heads/model.safetensors" in check_folder(tmp_path / "again").members
    again = SentenceTransformer(str(tmp_path / "again"), model_kwargs={"dtype": torch.bfloat16})
    own, loaded = heads_in(headed).state_dict(), heads_in(again).state_dict()
    assert all(torch.equal(own[name], loaded[name]) for name in own)
    assert not any(p.requires_grad for p in heads_in(again).parameters())


def test_heads_and_a_rotation_do_not_mind_each_other(headed, texts):
    before = encode_all_tasks(headed, texts, mode="head")
    st_jv5.rotate(headed, texts, steps=9)
    after = encode_all_tasks(headed, texts, mode="head")
    for task, rows in before.items():
        np.testing.assert_allclose(rows @ rows.T, after[task] @ after[task].T, atol=1e-5)
        stock = headed.encode(texts, task=task, mode="head")
        np.testing.assert_allclose(stock, after[task], atol=1e-5)
    st_jv5.fit_heads(headed, fitting(), tasks=["clustering"], **SMALL)
    again = encode(headed, texts, task="clustering", mode="head")
    np.testing.assert_allclose(again, after["clustering"], atol=1e-3)
    assert heads_in(headed).tasks[-1] == "clustering"
    assert len(heads_in(headed).tasks) == 4


@pytest.mark.parametrize(
    ("texts", "settings", "told"),
    [
        (
            [*map(str, range(95))],
            {},
            "95 different texts cannot fit maps of 48 dims; pass 96 or more",
        ),
        ([*"abc"] * 95, {}, "3 different texts cannot fit maps of 48 dims; pass 96 or more"),
        (["a"] * 96, {"tasks": ["retreival"]}, "unknown task 'retreival'"),
        (["a"] * 96, {"hidden": -1}, "hidden must be 0 or more, not -1"),
    ],
)
def test_what_cannot_be_fitted_is_refused(model, texts, settings, told):
    with pytest.raises(ValueError, match=told):
        st_jv5.fit_heads(model, texts, **settings)
    assert heads_in(model) is None


def test_a_model_without_adapters_has_no_heads_to_fit(student):
    with pytest.raises(ValueError, match="no adapters to fit heads to"):
        st_jv5.fit_heads(student, ["a"] * 96)


def test_a_model_without_heads_says_how_to_fit_them(model):
    for call in (
        lambda: model.encode(["a"], task="retrieval", mode="head"),
        lambda: encode(model, ["a"], task="retrieval", mode="head"),
        lambda: encode_all_tasks(model, ["a"], mode="head"),
    ):
        with pytest.raises(ValueError, match=r"no heads; fit them: st_jv5.fit_heads"):
            call()


def test_a_mode_or_a_task_without_a_head_is_refused(headed):
    with pytest.raises(ValueError, match="unknown mode 'heads'"):
        encode(headed, ["a"], task="retrieval", mode="heads")
    with pytest.raises(ValueError, match="A blend has none"):
        encode(headed, ["a"], task={"retrieval": 0.5, "clustering": 0.5}, mode="head")
    st_jv5.add_task(headed, "fresh")
    with pytest.raises(ValueError, match="'fresh' has no head; tasks with a head: retrieval"):
        headed.encode(["a"], task="fresh", mode="head")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dim": 1 << 20}, "dim must be 48"),
        ({"tasks": ["../x"]}, "tasks must be some of retrieval"),
        ({"tasks": ["retrieval"], "hidden": {}}, "must hold"),
        ({"hidden": {"retrieval": 0}}, "hidden must map some of"),
        ({"hidden": {"retrieval": 7}}, "must hold"),
    ],
)
def test_a_folder_with_other_heads_than_it_says_is_refused(headed, tmp_path, change, told):
    headed.save_pretrained(str(tmp_path))
    path = tmp_path / "2_Heads/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=told):
        check_folder(tmp_path)


def test_heads_that_are_no_numbers_are_refused(headed, tmp_path):
    headed.save_pretrained(str(tmp_path))
    path = tmp_path / "2_Heads/model.safetensors"
    tensors = load_file(path)
    tensors["maps.retrieval.bias"][0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"2_Heads.*maps.retrieval.bias is NaN or infinite"):
        SentenceTransformer(str(tmp_path))


# ----------------------------------------------------------------------------------- an old index


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    pq.write_table(
        pa.table({"id": [f"d{i}" for i in range(40)], "text": real_texts(40)}),
        tmp_path / "texts.parquet",
    )
    return Corpus(tmp_path / "texts.parquet", "text")


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_converted_index_is_one_that_is_encoded_anew(
    with_heads_once, saved, corpus, tmp_path, precision
):
    told = {"shard_rows": 16, "precision": precision}
    # of the model before it had heads
    encode_corpus(saved, corpus, tmp_path / "base", task="base", **told)
    fresh = encode_corpus(
        with_heads_once, corpus, tmp_path / "fresh", task="clustering", mode="head", **told
    )
    made = convert(tmp_path / "base", "clustering", tmp_path / "made", model=with_heads_once)
    assert made.shards == 3
    tolerance = 1e-5 if precision == "float32" else 6  # of 255 steps
    for number in range(3):
        ids, kept = made.load(number)
        assert ids == fresh.load(number)[0]
        np.testing.assert_allclose(kept, fresh.load(number)[1], atol=tolerance)
    texts = real_texts(40)[:8]
    found, wanted = (search(folder, texts, k=1, model=with_heads_once) for folder in (made, fresh))
    assert [hits[0].id for hits in found] == [hits[0].id for hits in wanted]
    assert [hits[0].id for hits in found] == [f"d{i}" for i in range(8)]
    with pytest.raises(ValueError, match="not by this model"):
        search(made, texts, model=saved)  # it has no heads, so it is another model


def test_what_cannot_be_converted_is_refused_before_anything_is_written(
    with_heads_once, corpus, tmp_path
):
    for task, settings, told in (
        ("retrieval", {}, r"of the task 'retrieval'; convert takes those of 'base'"),
        ("base", {"dim": 16}, "vectors of 16 dims; a head takes all 48"),
        ("base", {"precision": "binary"}, "binary vectors hold too little"),
    ):
        folder = tmp_path / f"{task}{len(settings)}{settings.get('dim')}"
        encode_corpus(with_heads_once, corpus, folder, task=task, **settings)
        with pytest.raises(ValueError, match=told):
            convert(folder, "clustering", tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_the_command_converts(with_heads_once, corpus, tmp_path, capsys):
    encode_corpus(with_heads_once, corpus, tmp_path / "base", task="base")
    cli.main(
        ["convert", str(tmp_path / "base"), "--task", "query", "--out", str(tmp_path / "made")]
    )
    assert "40 vectors of 48 dims as float32" in capsys.readouterr().out
    assert VectorFolder(tmp_path / "made").manifest["task"] == "retrieval"
