"""The comparison is fair: stock losses compute the same, and the ratios are those of one run."""

from __future__ import annotations

import json

import pytest
import torch

import st_jv5
from eval import speed
from eval.baselines import SeparateForwards, SharedForward


@pytest.mark.parametrize("way", [SeparateForwards, SharedForward])
@pytest.mark.parametrize("task", ["base", "retrieval"])
def test_stock_losses_give_the_same_loss_and_gradients(tmp_path, way, task):
    model = speed.new_model(task, layers=1, max_tokens=24)
    store = speed.new_store(str(tmp_path))
    ours = st_jv5.retrieval_loss(model, speed.TEACHER_DIM, dims=speed.DIMS, store=store)
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
