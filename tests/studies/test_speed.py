"""The comparison is fair: stock losses compute the same, and the ratios are those of one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import st_jv5
from eval.studies import speed, speed_curves, speed_encode, speed_teacher
from eval.studies.baselines import SeparateForwards, SharedForward
from st_jv5.teacher import TeacherStore


@pytest.mark.parametrize("way", [SeparateForwards, SharedForward])
@pytest.mark.parametrize("task", ["base", "retrieval"])
def test_stock_losses_give_the_same_loss_and_gradients(tmp_path, way, task):
    model = speed.new_model(task, layers=1, max_tokens=24)
    store = speed.new_store(str(tmp_path))
    ours = st_jv5.losses.retrieval_loss(model, speed.TEACHER_DIM, dims=speed.DIMS, store=store)
    torch.nn.init.normal_(model[0].projection.linear.weight)
    stock = way(model, model[0].projection, speed.DIMS)
    columns, labels = speed.batch_of(model, store, speed.wikipedia_pairs(8, seed=0))
    vectors = store.gather(labels).float()
    found = []
    for compute in (
        lambda: torch.stack(list(ours(columns, labels).values())).sum(),
        lambda: stock(columns, vectors),
    ):
        model.zero_grad()
        value = compute()
        value.backward()
        trained = {n: p for n, p in model.named_parameters() if p.grad is not None}
        own = {n: p.grad.clone() for n, p in trained.items() if "projection" not in n}
        found.append((value.item(), own))
    (our_loss, our_gradients), (stock_loss, stock_gradients) = found
    assert our_loss == pytest.approx(stock_loss, rel=1e-5)
    assert our_gradients.keys() == stock_gradients.keys() != set()
    for name, gradient in our_gradients.items():
        assert torch.allclose(gradient, stock_gradients[name], rtol=1e-3, atol=1e-5), name


def test_ratios_are_medians_over_rounds_of_the_same_batch():
    seconds = {
        "ours": [1.0, 2.0, 4.0],
        "stock_separate": [10.0, 10.0, 10.0],
        "stock_shared": [2.0, 4.0, 8.0],
        "bare": [1.0, 1.0, 2.0],
    }
    assert speed.ratios(seconds) == {"stock_separate": 5.0, "stock_shared": 2.0, "bare": 2.0}


def test_the_last_line_is_json(capsys, monkeypatch):
    monkeypatch.setattr(speed, "MEMORY_BATCHES", (4, 8))
    monkeypatch.setattr(speed, "peak_memory", lambda size, args: 1000 + size)
    small = ["--batch-size", "4", "--layers", "1", "--max-tokens", "8", "--rounds", "1"]
    speed.main(["train", *small])
    lines = capsys.readouterr().out.strip().splitlines()
    result = json.loads(lines[-1])
    assert set(result) == {"stock_separate", "stock_shared", "bare", "memory_growth"}
    assert result["memory_growth"] == pytest.approx(1008 / 1004 - 1, abs=1e-4)
    assert any(line.split()[:2] == ["ours", "median"] for line in lines)
    with pytest.raises(SystemExit):
        speed.main(["train", "--rounds", "0"])


def test_a_childs_peak_is_its_own(capsys):
    args = ["--batch-size", "4096", "--layers", "1", "--max-tokens", "8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "MEMORY_BATCHES", (4, 8))
        speed.main(["peak", *args])
    assert int(capsys.readouterr().out.split()[-1]) > 100 * 2**20


def test_the_teacher_part_measures_a_store_that_it_fills(tmp_path, capsys, monkeypatch):
    tree = yaml.safe_load(speed_teacher.RECIPE.read_text())
    name = "wikipedia-descriptions"
    tree["data_folder"] = str(speed_teacher.RECIPE.parents[2])
    tree["data_sets"] = {name: tree["data_sets"][name] | {"limit": 40}}
    tree["stage1"] |= {"data": {name: 1}, "replay": {}}
    tree |= {"adapters": {}, "precision": "float32"}
    tree["student"] |= {"layers": [0], "max_tokens": 8}
    tree["teacher"]["max_tokens"] = 8
    recipe = tmp_path / "demo.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    opened = []

    def open_here(folder: Path) -> dict[str, float]:
        speed.main(["open", str(folder)])
        opened.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
        return opened[-1]

    for key, value in (("RECIPE", recipe), ("SMALL", 300), ("LARGE", 2000), ("LARGE_DIM", 8)):
        monkeypatch.setattr(speed_teacher, key, value)
    monkeypatch.setattr(speed_teacher, "open_in_child", open_here)
    output = tmp_path / "out"
    speed.main(["teacher", "--output", str(output), "--batch-size", "8", "--rounds", "1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result) == [
        "gather_share",
        "vs_lists",
        "disk_overhead",
        "gather_growth",
        "open_seconds",
    ]
    assert all(value > 0 for value in result.values())
    assert result["gather_share"] < 1
    assert result["open_seconds"] == round(max(one["seconds"] for one in opened), 4)
    assert len(TeacherStore.open(tmp_path / "out" / "teacher").spaces()) == 1
    kept = {path.name for path in output.iterdir()}
    assert kept == {"run", "teacher"}  # the synthetic rows are gone


def test_the_curves_part_compares_encoding_and_tells_scoring_apart(
    capsys, monkeypatch, small_tasks
):
    monkeypatch.setattr(speed_curves, "TASKS", ("WordNetSTS",))
    speed.main(["curves", "--rounds", "1", "--max-tokens", "16"])
    *lines, last = capsys.readouterr().out.strip().splitlines()
    result = json.loads(last)
    assert set(result) == {"curve_encoding", "plain_scoring", "curve_scoring"}
    assert result["curve_encoding"] > 0
    assert result["curve_scoring"] > result["plain_scoring"] > 0  # 25 scores against one
    assert [line.split()[:2] for line in lines[-4:]] == [
        [way, part] for way in ("plain", "curves") for part in ("encoding", "scoring")
    ]


def test_the_encode_part_compares_equal_vectors_and_threads_get_equal_bits(
    capsys, monkeypatch, saved
):
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
    monkeypatch.setattr(speed_encode, "NANO", shape)
    monkeypatch.setattr(speed_encode, "peak", lambda folder, way, args: 1000 + len(way))
    small = ["--texts", "8", "--stream", "24", "--rounds", "2", "--max-tokens", "32"]
    speed.main(["encode", "--model", saved, *small])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    keys = {"vs_bare", "vs_unmerged", "token_budget", "token_budget_small", "alternating"}
    keys |= {"alternating_vs_pure", "threads"}
    for found in (result, result[saved]):
        for key in keys:
            low, high = found[f"{key}_interval"]
            assert 0 < low <= found[key] <= high
    assert result["token_budget_peak"] == round(1004 / 1005, 3)
    with pytest.raises(SystemExit, match=r"b differs from a by 1.00e-01"):
        speed_encode.same(0.01)(a=torch.zeros(2, 2).numpy(), b=torch.full((2, 2), 0.1).numpy())


def test_a_ratio_is_the_median_of_rounds_with_an_interval():
    seconds = {"a": [2.0, 3.0, 4.0, 100.0, 3.0], "b": [1.0, 1.0, 1.0, 1.0, 1.0]}
    value, (low, high) = speed_encode.ratio(seconds, "a", "b")
    assert value == 3
    assert 2 <= low <= 3 <= high <= 100
    assert speed_encode.ratio({"a": [2.0, 2.0], "b": [1.0, 1.0]}, "a", "b") == (2, [2, 2])
