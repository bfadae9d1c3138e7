"""A rotation keeps cosines, orders dims, and goes wherever the model goes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

import st_jv5
from st_jv5.adapters import add_task, load_adapter, merge_task, save_adapter
from st_jv5.encoding import encode
from st_jv5.export import export
from st_jv5.fingerprint import fingerprint
from st_jv5.folders.trust import check_folder
from st_jv5.modules import Rotation
from st_jv5.modules.rotation import rotation_in
from st_jv5.precision import unit
from st_jv5.projection import Projection
from st_jv5.rotation import axes_of, moment_of, neighbours_lost, refined, unrotate
from st_jv5.task_table import TASKS

PAIRS = [(f"what is {word}", f"{word} is a thing") for word in map(str, range(60))]


def cosines(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    return wide @ wide.T


def lost(rows: np.ndarray, dim: int) -> float:
    """Mean squared error of the inner products of unit rows, cut to ``dim``."""
    whole, cut = rows.astype(np.float64), rows[:, :dim].astype(np.float64)
    return float(((whole @ whole.T - cut @ cut.T) ** 2).mean())


@pytest.fixture
def stock(backbones) -> SentenceTransformer:
    transformer = Transformer(backbones["bert"])
    return SentenceTransformer(modules=[transformer, Pooling(48, "mean"), Normalize()])


def test_axes_are_orthonormal_and_the_first_holds_most():
    rows = np.random.default_rng(0).standard_normal((500, 12)) * np.linspace(0.1, 3, 12)
    axes = axes_of(rows.T @ rows)
    np.testing.assert_allclose(axes.T @ axes, np.eye(12), atol=1e-12)
    held = ((rows @ axes) ** 2).sum(axis=0)
    assert (np.diff(held) < 0).all()


def test_axes_of_pairs_are_those_that_both_sides_share():
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((4000, 2))
    noise = 3 * rng.standard_normal((2, 4000, 2))
    one, other = (np.concatenate([shared, own], axis=1) for own in noise)
    axes = axes_of(moment_of(np.stack([one, other], axis=1)))
    assert np.abs(axes[2:, :2]).max() < 0.2


def test_refined_axes_stay_orthonormal_and_keep_more_neighbours():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((600, 1, 24)) * np.linspace(2, 0.2, 24)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    start = axes_of(moment_of(rows))
    found = refined(start, [rows], steps=60)
    np.testing.assert_allclose(found.T @ found, np.eye(24), atol=1e-12)
    whole = torch.from_numpy(rows[:, 0])

    def lost(axes):
        return float(neighbours_lost(whole, whole @ torch.from_numpy(axes), [16]))

    assert lost(found) < 0.95 * lost(start)
    np.testing.assert_array_equal(refined(start, [rows], steps=60), found)  # no luck in it


def test_no_neighbour_is_lost_at_full_width():
    rows = torch.nn.functional.normalize(torch.randn(20, 6), dim=1)
    turn, _ = torch.linalg.qr(torch.randn(6, 6))
    assert abs(float(neighbours_lost(rows, rows @ turn, [6]))) < 1e-4
    assert float(neighbours_lost(rows, rows @ turn, [2])) > 0.01


def test_every_adapter_keeps_its_cosines_and_those_between_adapters(model, texts):
    before = {task: encode(model, texts, task=task) for task in [*TASKS, "base"]}
    st_jv5.rotate(model, texts, steps=9)
    after = {task: encode(model, texts, task=task) for task in before}
    both = [np.concatenate(list(found.values())) for found in (before, after)]
    np.testing.assert_allclose(cosines(both[0]), cosines(both[1]), atol=1e-6)
    assert np.abs(both[0] - both[1]).max() > 0.01  # it is not the identity


def test_cut_vectors_lose_less_than_before(model, texts):
    before = encode(model, texts, task="retrieval")
    st_jv5.rotate(model, texts, tasks=["retrieval"], steps=0)  # the closed form loses least
    after = encode(model, texts, task="retrieval")
    for dim in (2, 8, 16):
        assert lost(after, dim) < lost(before, dim)
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, atol=1e-6)
    cut = encode(model, texts, task="retrieval", dim=8)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-6)


def test_any_dim_of_a_rotated_model_is_cut_without_a_warning(model, texts, caplog):
    st_jv5.rotate(model, texts, steps=9)
    with caplog.at_level(logging.WARNING):
        encode(model, texts[:2], task="base", dim=5)
    assert "was not trained" not in caplog.text


def test_a_saved_model_and_one_that_is_rotated_anew_give_the_same_vectors(model, texts, tmp_path):
    st_jv5.rotate(model, texts, steps=9)
    rotated = encode(model, texts, task="clustering")
    name = fingerprint(model)
    model.save_pretrained(str(tmp_path / "saved"))
    assert "2_Rotation/model.safetensors" in check_folder(tmp_path / "saved").members
    loaded = SentenceTransformer(str(tmp_path / "saved"))
    np.testing.assert_array_equal(encode(loaded, texts, task="clustering"), rotated)
    assert fingerprint(loaded) == name
    assert not any(p.requires_grad for p in rotation_in(loaded).parameters())
    st_jv5.rotate(loaded, texts, steps=9)
    np.testing.assert_allclose(encode(loaded, texts, task="clustering"), rotated, atol=1e-2)
    assert sum(isinstance(module, Rotation) for module in loaded) == 1


def test_unrotate_gives_the_vectors_of_before(model, texts):
    before, name = encode(model, texts, task="retrieval"), fingerprint(model)
    st_jv5.rotate(model, texts, steps=9)
    assert fingerprint(model) != name  # so that an index of before is refused
    unrotate(model)
    np.testing.assert_array_equal(encode(model, texts, task="retrieval"), before)
    assert fingerprint(model) == name


def test_a_model_that_is_set_to_cut_is_rotated_whole(model, texts):
    before = encode(model, texts, task="retrieval")
    model.truncate_dim = 8
    st_jv5.rotate(model, texts, steps=9)
    assert (rotation_in(model).dim, model.truncate_dim) == (48, 8)
    model.truncate_dim = None
    np.testing.assert_allclose(
        cosines(before), cosines(encode(model, texts, task="retrieval")), atol=1e-6
    )


def test_pairs_get_the_prompts_of_their_sides(model, monkeypatch):
    seen = []
    real = st_jv5.rotation.encode

    def spy(model, texts, **settings):
        seen.append((settings["task"], settings["prompt"], texts[0]))
        return real(model, texts, **settings)

    monkeypatch.setattr(st_jv5.rotation, "encode", spy)
    st_jv5.rotate(model, PAIRS, tasks=["retrieval"], steps=0)
    query, document = PAIRS[0]
    assert seen == [("retrieval", "Query: ", query), ("retrieval", "Document: ", document)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rotation_stays_in_float32(model, texts, dtype, tmp_path):
    st_jv5.rotate(model, texts, steps=9)
    model.save_pretrained(str(tmp_path / "saved"))
    loaded = SentenceTransformer(str(tmp_path / "saved"), model_kwargs={"dtype": dtype})
    whole = rotation_in(model).weight
    assert torch.equal(rotation_in(loaded.to(dtype)).weight, whole)
    with torch.autocast("cpu", torch.bfloat16):
        rows = encode(loaded, texts, task="base")
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_a_stock_model_gets_a_stock_module(stock, texts, tmp_path):
    before = stock.encode(texts)
    st_jv5.rotate(stock, texts, steps=0)
    assert [type(m) for m in stock] == [Transformer, Pooling, Dense, Normalize]
    after = stock.encode(texts)
    np.testing.assert_allclose(cosines(before), cosines(after), atol=1e-6)
    assert lost(after, 8) < lost(before, 8)
    stock.save_pretrained(str(tmp_path / "saved"))
    told = json.loads((tmp_path / "saved/modules.json").read_text())
    assert all(entry["type"].startswith("sentence_transformers.") for entry in told)
    loaded = SentenceTransformer(str(tmp_path / "saved"))
    np.testing.assert_allclose(loaded.encode(texts), after, atol=1e-6)
    unrotate(loaded)
    np.testing.assert_allclose(loaded.encode(texts), before, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_stock_rotation_in_half_precision_is_known_again(stock, texts, dtype, tmp_path):
    st_jv5.rotate(stock.to(dtype), texts, steps=0)
    stock.save_pretrained(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path), model_kwargs={"dtype": dtype})
    st_jv5.rotate(loaded, texts, steps=0)  # in the place of the first
    assert [type(m) for m in loaded] == [Transformer, Pooling, Dense, Normalize]
    unrotate(loaded)
    assert [type(m) for m in loaded] == [Transformer, Pooling, Normalize]


def test_a_rotation_stands_before_the_last_normalisation(backbones, texts):
    modules = [Transformer(backbones["bert"]), Pooling(48, "mean"), Normalize()]
    tail = [Dense(48, 48, activation_function=torch.nn.Tanh()), Normalize()]
    model = SentenceTransformer(modules=[*modules, *tail])
    before = model.encode(texts)
    st_jv5.rotate(model, texts, steps=0)
    assert [type(m) for m in model][3:] == [Dense, Dense, Normalize]
    np.testing.assert_allclose(cosines(before), cosines(model.encode(texts)), atol=1e-6)


def test_a_merged_model_and_its_folder_are_rotated_too(model, texts, tmp_path):
    st_jv5.rotate(model, texts, steps=9)
    rotated = encode(model, texts, task="retrieval")
    stock = merge_task(model, "retrieval")
    assert [type(m).__name__ for m in stock] == ["Transformer", "Pooling", "Dense", "Normalize"]
    (parity,) = export(model, "retrieval", tmp_path / "merged", kind="merged", texts=texts)
    assert parity.least > 0.99999
    loaded = SentenceTransformer(str(tmp_path / "merged"), truncate_dim=8)
    cut = loaded.encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(cut @ cut.T, cosines(rotated[:, :8]), atol=1e-5)


@pytest.mark.full
def test_one_graph_is_rotated_too(model, texts, tmp_path):
    pytest.importorskip("onnxruntime")
    st_jv5.rotate(model, texts, steps=9)
    (parity,) = export(model, "retrieval", tmp_path / "onnx", kind="onnx", texts=texts[:8])
    assert parity.least > 0.9999


def test_gguf_has_no_place_for_a_rotation(model, texts, tmp_path):
    st_jv5.rotate(model, texts, steps=9)
    with pytest.raises(ValueError, match=r"cannot hold a rotation.*unrotate"):
        export(model, "retrieval", tmp_path / "gguf", kind="gguf")
    assert not (tmp_path / "gguf").exists()


def test_an_adapter_of_the_same_base_fits_a_rotated_model(model, student, texts, tmp_path):
    save_adapter(model, "clustering", tmp_path / "adapter")
    before = encode(model, texts, task="clustering")
    st_jv5.rotate(student, texts, steps=9)
    load_adapter(student, tmp_path / "adapter")
    after = encode(student, texts, task="clustering")
    np.testing.assert_allclose(cosines(before), cosines(after), atol=1e-6)
    add_task(student, "fresh")  # and training leaves the rotation alone
    assert all("lora_" in n for n, p in student.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("placement", ["student_up", "teacher_down"])
def test_a_projection_joins_the_rotated_student_to_its_teacher(student, texts, placement):
    torch.manual_seed(0)
    wide = (48, 64) if placement == "student_up" else (48, 96)
    projection = Projection(*wide, placement=placement)
    torch.nn.init.normal_(projection.linear.weight)
    torch.nn.init.normal_(projection.linear.bias)
    student[0].projection = projection
    teacher = torch.randn(len(texts), wide[1])

    def scores() -> torch.Tensor:
        with torch.no_grad():
            own, other = projection(torch.from_numpy(encode(student, texts, task="base")), teacher)
        return own @ other.T

    before = scores()
    st_jv5.rotate(student, texts, steps=9)
    torch.testing.assert_close(scores(), before, atol=1e-3, rtol=1e-4)
    unrotate(student)
    torch.testing.assert_close(scores(), before, atol=1e-3, rtol=1e-4)


def test_a_projection_with_maps_of_cut_vectors_is_refused(student, texts):
    student[0].projection = Projection(48, 64, own_map_dims=[8])
    with pytest.raises(ValueError, match="maps of its own for vectors cut to 8 dims"):
        st_jv5.rotate(student, texts, steps=9)
    assert rotation_in(student) is None


@pytest.mark.parametrize(
    ("rows", "settings", "told"),
    [
        (["a"] * 47, {}, "47 texts cannot put 48 dims in order; pass 48 or more"),
        ("one text", {}, "texts must be a list, not one text"),
        ([("a", "b"), "c"], {}, "row 1 must be a pair of texts"),
        ([("a", "b", "c")], {}, "row 0 must be a pair of texts"),
        (PAIRS, {"tasks": ["retreival"]}, "unknown task 'retreival'"),
    ],
)
def test_what_cannot_be_fitted_is_refused(model, rows, settings, told):
    with pytest.raises(ValueError, match=told):
        st_jv5.rotate(model, rows, **settings)
    assert rotation_in(model) is None


def test_a_stock_model_has_no_tasks_to_rotate(stock, texts):
    with pytest.raises(ValueError, match="has no tasks; leave out tasks=\\['retrieval'\\]"):
        st_jv5.rotate(stock, texts, tasks=["retrieval"])


@pytest.fixture
def rotated(model, texts, tmp_path) -> Path:
    st_jv5.rotate(model, texts, steps=9)
    model.save_pretrained(str(tmp_path / "rotated"))
    return tmp_path / "rotated"


def test_a_folder_whose_matrix_is_no_rotation_is_refused(rotated):
    path = rotated / "2_Rotation/model.safetensors"
    save_file({"linear.weight": 1.01 * load_file(path)["linear.weight"]}, path)
    with pytest.raises(
        ValueError, match=r"2_Rotation/model.safetensors is not an orthogonal matrix"
    ):
        SentenceTransformer(str(rotated))


@pytest.mark.parametrize(
    ("dim", "width", "told"),
    [(4096, 48, "dim must be 48"), (48, 24, "must hold linear.weight \\(48, 48\\)")],
)
def test_a_folder_with_a_rotation_of_another_width_is_refused(rotated, dim, width, told):
    (rotated / "2_Rotation/config.json").write_text(json.dumps({"dim": dim}))
    save_file({"linear.weight": torch.eye(width)}, rotated / "2_Rotation/model.safetensors")
    with pytest.raises(ValueError, match=told):
        check_folder(rotated)


def test_axes_are_the_same_inside_a_callers_autocast():
    rows = unit(np.random.default_rng(3).standard_normal((200, 48)))[:, None]
    alone = refined(np.eye(48), [rows], steps=20)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(refined(np.eye(48), [rows], steps=20), alone)
