"""What learns: in float32 whatever was loaded, and a temperature at a rate of its own."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

import st_jv5
from st_jv5.losses import CompositeLoss, InfoNCELoss, retrieval_loss
from tests.conftest import TEACHER_DIM, arguments, trainable, with_adapters


@pytest.mark.parametrize("task", ["base", "retrieval"])
def test_what_learns_is_float32_and_moves_whatever_the_base_was_loaded_in(
    backbones, pairs, store, tmp_path, task
):
    """Qwen3-0.6B's config says bfloat16: AdamW at 1e-5 would move 15% of its weights."""
    model = st_jv5.new_student(
        backbones["bert"], matryoshka_dims=(8, 48), dtype=torch.bfloat16, pooling="mean"
    )
    model = with_adapters(model)
    loss = retrieval_loss(model, TEACHER_DIM, store=store)
    before = trainable(model)
    trainer = st_jv5.AdapterTrainer(
        model,
        arguments(tmp_path, learning_rate=1e-5, bf16=True, save_strategy="no"),
        tasks=task,
        train_dataset=pairs,
        loss=loss,
    )
    trainer.train()
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in learned.values()} == {torch.float32}
    base = {p.dtype for p in model[0].base_parameters()}
    assert base == {torch.float32 if task == "base" else torch.bfloat16}
    state = trainer.optimizer.state.values()
    assert {one[moment].dtype for one in state for moment in ("exp_avg", "exp_avg_sq")} == {
        torch.float32
    }
    idle = ("embeddings", "pooler", "key.bias")  # unread tokens and layer, a bias without effect
    moved = [
        (tensor != before[name].float()).flatten()
        for name, tensor in learned.items()
        if not any(part in name for part in idle)
    ]
    assert torch.cat(moved).float().mean() > 0.98


def test_an_adapter_on_a_model_loaded_to_encode_in_bfloat16_learns_in_float32(
    saved, pairs, store, texts, tmp_path
):
    model = SentenceTransformer(saved, model_kwargs={"dtype": torch.bfloat16})
    before = model.encode(texts[:4], task="retrieval")
    st_jv5.add_task(model, "news", rank=4)
    added = model[0].adapter_tensors("news")
    assert {tensor.dtype for tensor in added.values()} == {torch.float32}
    assert model[0].model.dtype == torch.bfloat16
    trainer = st_jv5.AdapterTrainer(
        model,
        arguments(tmp_path, max_steps=2),  # without autocast
        tasks="news",
        train_dataset=pairs,
        loss=retrieval_loss(model, TEACHER_DIM, store=store),
    )
    trainer.train()
    assert all(bool(tensor.any()) for tensor in added.values())
    assert (model.encode(texts[:4], task="retrieval") == before).all()
    st_jv5.adapters.save_adapter(model, "news", tmp_path / "news")
    taken = st_jv5.adapters.Adapter.load(tmp_path / "news").tensors
    assert {tensor.dtype for tensor in taken.values()} == {torch.float32}


class Scaled(InfoNCELoss):
    """Somebody's loss, with a weight of its own."""

    def __init__(self, model: SentenceTransformer, dtype: torch.dtype) -> None:
        super().__init__(model)
        self.scale = nn.Parameter(torch.ones(1, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_weight_that_would_learn_in_half_precision_is_refused(model, pairs, tmp_path, dtype):
    loss = CompositeLoss(model, {"own": (Scaled(model, dtype), 1.0)})
    settings = {"tasks": "retrieval", "train_dataset": pairs.remove_columns("label"), "loss": loss}
    says = f"losses.own.scale would be trained in {str(dtype)[6:]}.*loss.float.*bf16=True"
    with pytest.raises(ValueError, match=says):
        st_jv5.AdapterTrainer(model, arguments(tmp_path), **settings)
    loss.float()
    trainer = st_jv5.AdapterTrainer(model, arguments(tmp_path), **settings)
    model.to(dtype)  # as an evaluation with bf16_full_eval leaves it
    with pytest.raises(ValueError, match="would be trained in"):
        trainer.train()


def learned_temperature(
    model: SentenceTransformer, pairs, folder, rate: float | None = None, **settings
) -> tuple[float, st_jv5.AdapterTrainer]:
    """The logarithm's way from its start, and the trainer."""
    infonce = InfoNCELoss(model, temperature=0.02, learn_temperature=True)
    start = infonce.log_temperature.item()
    args = arguments(
        folder, lr_scheduler_type="constant", learning_rate=2e-5, save_strategy="no", **settings
    )
    trainer = st_jv5.AdapterTrainer(
        model,
        args,
        tasks="retrieval",
        train_dataset=pairs.remove_columns("label"),
        loss=CompositeLoss(model, {"infonce": (infonce, 1.0)}),
        **({} if rate is None else {"temperature_rate": rate}),
    )
    trainer.train()
    assert args.learning_rate_mapping == settings.get("learning_rate_mapping", {})
    return infonce.log_temperature.item() - start, trainer


@pytest.mark.parametrize("rate", [None, 0.05])
def test_a_learned_temperature_moves_at_a_rate_of_its_own_without_decay(
    model, pairs, tmp_path, rate
):
    """AdamW steps by about its rate, here in one direction: an untrained model wants it higher."""
    moved, trainer = learned_temperature(model, pairs, tmp_path, rate, weight_decay=0.5)
    assert moved == pytest.approx(6 * (rate or 1e-3), rel=0.3)
    groups = [g for g in trainer.optimizer.param_groups if g["params"]]
    (own,) = [g for g in groups if g["params"][0].ndim == 0]
    assert len(own["params"]) == 1
    assert own["weight_decay"] == 0
    assert {g["lr"] for g in groups if g is not own} == {2e-5}
    assert {g["weight_decay"] for g in groups if g is not own} == {0.5}


def test_a_rate_that_the_arguments_name_wins(model, pairs, tmp_path):
    moved, _ = learned_temperature(
        model, pairs, tmp_path, learning_rate_mapping={"log_temperature": 0.02}
    )
    assert moved == pytest.approx(6 * 0.02, rel=0.3)
