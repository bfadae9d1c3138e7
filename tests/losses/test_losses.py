"""Each loss against the paper's double loops, and how it is wired to model, labels and columns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch.nn.functional import normalize

import st_jv5
from st_jv5.losses import (
    CompositeLoss,
    CoSENTDistillLoss,
    CoSENTLoss,
    GORLoss,
    InfoNCELoss,
    ProjectedCosineDistillLoss,
    RelationalKDLoss,
    classification_loss,
    clustering_loss,
    retrieval_loss,
    text_matching_loss,
)
from st_jv5.projection import Projection
from st_jv5.teacher import TeacherStore
from tests import reference
from tests.conftest import with_adapters
from tests.losses.conftest import BATCH, DIM, TEACHER_DIM, array, unit


def random_projection(placement: str) -> Projection:
    torch.manual_seed(3)
    projection = Projection(DIM, TEACHER_DIM, placement=placement).double()
    torch.nn.init.normal_(projection.linear.weight)
    torch.nn.init.normal_(projection.linear.bias, std=0.1)
    return projection


def features_of(model: SentenceTransformer, *columns: list[str]) -> list[dict[str, torch.Tensor]]:
    return [model.preprocess(column, prompt="Document: ") for column in columns]


# ------------------------------------------------------------------------------------- distillation


@pytest.mark.parametrize("placement", ["student_up", "teacher_down"])
def test_distill_is_eq_1_through_the_projection(student, columns, teachers, placement):
    projection = random_projection(placement)
    loss = ProjectedCosineDistillLoss(
        student, TEACHER_DIM, placement=placement, projection=projection
    )
    found = loss.compute_loss_from_embeddings(columns, teachers)["distill"]
    weight, bias = array(projection.linear.weight), array(projection.linear.bias)
    both = [array(teachers[:, c]) for c in range(2)]
    expected = reference.distill([array(c) for c in columns[:2]], both, weight, bias, placement)
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_distill_at_a_cut_width_meets_the_first_columns_of_w(student, columns, teachers):
    projection = random_projection("student_up")
    loss = ProjectedCosineDistillLoss(student, TEACHER_DIM, projection=projection)
    cut = [normalize(c[:, :16], dim=-1) for c in columns]
    found = loss.compute_loss_from_embeddings(cut, teachers)["distill"]
    weight, bias = array(projection.linear.weight)[:, :16], array(projection.linear.bias)
    both = [array(teachers[:, c]) for c in range(2)]
    expected = reference.distill([array(c) for c in cut[:2]], both, weight, bias)
    assert found.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("train_projection", [True, False])
def test_distill_gradients_reach_student_and_projection_but_not_the_teacher(
    student, columns, teachers, train_projection
):
    teachers.requires_grad_()
    projection = random_projection("student_up")
    loss = ProjectedCosineDistillLoss(
        student, TEACHER_DIM, train_projection=train_projection, projection=projection
    )
    loss.compute_loss_from_embeddings(columns, teachers)["distill"].backward()
    assert teachers.grad is None
    assert columns[0].grad is not None
    assert columns[2].grad is None  # negatives are not distilled
    assert (projection.linear.weight.grad is not None) is train_projection


def test_rows_of_the_store_distil_as_their_vectors_do(student, columns, teachers, tmp_path):
    store = TeacherStore.open(tmp_path, create=True).space(
        "t", dim=TEACHER_DIM, dtype="float32", shards=1
    )
    names = [[f"{row}.{column}" for column in range(2)] for row in range(BATCH)]
    flat = [name for row in names for name in row]
    store.add(flat, teachers.reshape(-1, TEACHER_DIM).float())
    rows = torch.from_numpy(store.rows(flat).reshape(BATCH, 2))
    loss = ProjectedCosineDistillLoss(student, TEACHER_DIM, store=store)
    by_rows = loss.compute_loss_from_embeddings(columns, rows)["distill"]
    by_vectors = loss.compute_loss_from_embeddings(columns, teachers.float())["distill"]
    assert torch.equal(by_rows, by_vectors)


def test_a_row_without_a_vector_is_left_out_of_the_mean(student, columns, teachers, tmp_path):
    store = TeacherStore.open(tmp_path, create=True).space(
        "t", dim=TEACHER_DIM, dtype="float32", shards=1
    )
    store.add(["a", "b"], teachers[:2, 0].float())
    rows = torch.tensor([[0], [1], [-1], [-1], [-1]])
    loss = ProjectedCosineDistillLoss(student, TEACHER_DIM, store=store)
    found = loss.compute_loss_from_embeddings(columns, rows)["distill"]
    alone = loss.compute_loss_from_embeddings([c[:2] for c in columns], rows[:2])["distill"]
    assert found.item() == pytest.approx(alone.item(), abs=1e-12)
    nothing = loss.compute_loss_from_embeddings(columns, torch.full((BATCH, 1), -1))["distill"]
    assert nothing.item() == 0
    nothing.backward()


def test_the_projection_lives_in_the_model_and_is_taken_up_again(student, tmp_path):
    first = ProjectedCosineDistillLoss(student.float(), TEACHER_DIM)
    torch.nn.init.normal_(first.projection.linear.weight)
    student.save_pretrained(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path))
    assert not loaded[0].projection.linear.weight.requires_grad  # only a distillation trains it
    again = ProjectedCosineDistillLoss(loaded, TEACHER_DIM)
    assert loaded[0].projection.linear.weight.requires_grad
    assert torch.equal(first.projection.linear.weight, again.projection.linear.weight)
    with pytest.raises(ValueError, match="48 -> 20 student_up, but 48 -> 7 student_up"):
        ProjectedCosineDistillLoss(loaded, 7)


def test_distillation_without_vectors_says_what_is_missing(student, columns):
    loss = ProjectedCosineDistillLoss(student, TEACHER_DIM)
    with pytest.raises(ValueError, match="no label column"):
        loss.compute_loss_from_embeddings(columns, None)
    with pytest.raises(ValueError, match="pass store="):
        loss.compute_loss_from_embeddings(columns, torch.zeros(BATCH, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="a float per row is a score"):
        loss.compute_loss_from_embeddings(columns, torch.zeros(BATCH))
    with pytest.raises(ValueError, match="teacher dims, but got student"):
        loss.compute_loss_from_embeddings(columns, torch.zeros(BATCH, 2, 7))
    with pytest.raises(ValueError, match="labels are for 5 columns, but the batch has 4"):
        loss.compute_loss_from_embeddings(columns, torch.zeros(BATCH, 5, TEACHER_DIM))


# ---------------------------------------------------------------------------- contrastive and GOR


def test_gor_sums_queries_and_positives_and_ignores_negatives(student, columns):
    found = GORLoss(student).compute_loss_from_embeddings(columns)["gor"].item()
    assert found == pytest.approx(reference.gor([array(c) for c in columns[:2]]), abs=1e-12)


def test_info_nce_counts_every_positive_and_negative_of_the_batch(student, columns):
    found = InfoNCELoss(student).compute_loss_from_embeddings(columns)["infonce"].item()
    documents = np.concatenate([array(c) for c in columns[1:]])
    expected = reference.info_nce(array(columns[0]), documents, 0.02)
    assert found == pytest.approx(expected, rel=1e-6)  # the temperature is a float32 parameter


def test_two_directions_are_summed_and_the_way_back_has_no_hard_negatives(student, columns):
    loss = InfoNCELoss(student, directions=("query_to_doc", "doc_to_query"))
    found = loss.compute_loss_from_embeddings(columns)["infonce"].item()
    documents = np.concatenate([array(c) for c in columns[1:]])
    there = reference.info_nce(array(columns[0]), documents, 0.02)
    back = reference.info_nce(array(columns[1]), array(columns[0]), 0.02)
    assert found == pytest.approx(there + back, rel=1e-6)


def test_one_direction_equals_the_stock_loss(student, columns):
    stock = MultipleNegativesRankingLoss(student, scale=50.0)
    ours = InfoNCELoss(student, temperature=0.02).compute_loss_from_embeddings(columns)["infonce"]
    assert ours.item() == pytest.approx(
        stock.compute_loss_from_embeddings(columns, None).item(), rel=1e-6
    )


def test_a_learned_temperature_gets_the_gradient_of_finite_differences(student, columns):
    loss = InfoNCELoss(student, temperature=0.1, learn_temperature=True).double()
    value = loss.compute_loss_from_embeddings(columns)["infonce"]
    (gradient,) = torch.autograd.grad(value, loss.log_temperature)
    step = 1e-6
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            loss.log_temperature += sign * step
            ends.append(loss.compute_loss_from_embeddings(columns)["infonce"].item())
            loss.log_temperature -= sign * step
    assert gradient.item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)
    assert InfoNCELoss(student).log_temperature.requires_grad is False


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(student, temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        InfoNCELoss(student, temperature=temperature)
    with pytest.raises(ValueError, match="temperature must be positive"):
        CoSENTLoss(student, temperature=temperature)


# ------------------------------------------------------------------------------- text matching


def test_a_scored_batch_trains_cosent_alone(student, columns):
    loss = text_matching_loss(student, TEACHER_DIM)
    scores = torch.tensor([0.1, 0.9, 0.9, 0.3, 0.0])
    found = loss.compute_loss_from_embeddings(columns[:2], scores)
    cosines = [reference.cos(a, b) for a, b in zip(*map(array, columns[:2]), strict=True)]
    assert found["cosent"].item() == pytest.approx(
        reference.cosent(cosines, scores.tolist(), 0.05), rel=1e-6
    )
    assert found["infonce"].item() == found["distill"].item() == 0


def test_an_unscored_batch_trains_infonce_and_twice_distillation(student, columns, teachers):
    loss = text_matching_loss(student, TEACHER_DIM)
    found = loss.compute_loss_from_embeddings(columns[:2], teachers)
    infonce = reference.info_nce(array(columns[0]), array(columns[1]), 0.02)
    linear = loss.losses["distill"].projection.linear
    both = [array(teachers[:, c]) for c in range(2)]
    distill = reference.distill(
        [array(c) for c in columns[:2]], both, array(linear.weight), array(linear.bias)
    )
    assert found["infonce"].item() == pytest.approx(infonce, rel=1e-6)
    assert found["distill"].item() == pytest.approx(2 * distill, rel=1e-6)
    assert found["cosent"].item() == 0


def test_text_matching_refuses_missing_and_nan_scores(student, columns):
    loss = CoSENTDistillLoss(student, TEACHER_DIM)
    with pytest.raises(ValueError, match="needs the column 'label'"):
        loss.compute_loss_from_embeddings(columns[:2], None)
    with pytest.raises(ValueError, match=r"NaN in rows \[2\]"):
        loss.compute_loss_from_embeddings(columns[:2], torch.tensor([0.0, 0.1, math.nan, 0.2, 0.3]))
    with pytest.raises(ValueError, match="two text columns, got 4"):
        loss.compute_loss_from_embeddings(columns, torch.zeros(BATCH))


# --------------------------------------------------------------------------------- composition


def test_retrieval_is_one_infonce_two_distill_one_gor(student, columns, teachers):
    loss = retrieval_loss(student, TEACHER_DIM)
    found = loss.compute_loss_from_embeddings(columns, teachers)
    linear = loss.losses["distill"].projection.linear
    rows = [array(c) for c in columns]
    both = [array(teachers[:, c]) for c in range(2)]
    assert {k: v.item() for k, v in found.items()} == pytest.approx(
        {
            "infonce": reference.info_nce(rows[0], np.concatenate(rows[1:]), 0.02),
            "distill": 2
            * reference.distill(rows[:2], both, array(linear.weight), array(linear.bias)),
            "gor": reference.gor(rows[:2]),
        },
        rel=1e-6,
    )


def test_classification_is_both_directions_and_twenty_relational(student, columns):
    loss = classification_loss(with_adapters(student).double())
    bases = torch.stack([unit(BATCH, DIM, seed) for seed in range(20, 24)], dim=1)
    found = loss.compute_loss_from_embeddings(columns, bases)
    rows = [array(c) for c in columns]
    student_rows = np.stack(rows, axis=1).reshape(-1, DIM)
    rkd = reference.relational(student_rows, array(bases).reshape(-1, DIM))
    there = reference.info_nce(rows[0], np.concatenate(rows[1:]), 0.02)
    back = reference.info_nce(rows[1], rows[0], 0.02)
    assert found["rkd"].item() == pytest.approx(20 * rkd, rel=1e-6)
    assert found["infonce"].item() == pytest.approx(there + back, rel=1e-6)


def test_clustering_distils_one_text_column(student, columns, teachers):
    loss = clustering_loss(student, TEACHER_DIM)
    found = loss.compute_loss_from_embeddings(columns[:1], teachers[:, :1])
    linear = loss.losses["distill"].projection.linear
    expected = reference.distill(
        [array(columns[0])], [array(teachers[:, 0])], array(linear.weight), array(linear.bias)
    )
    assert found["distill"].item() == pytest.approx(expected, rel=1e-9)


def test_a_composite_at_dims_is_the_weighted_mean_of_each_dim(student, columns):
    loss = CompositeLoss(
        student, {"gor": (GORLoss(student), 3.0)}, dims=(48, 16), dim_weights=(1, 3)
    )
    found = loss.compute_loss_from_embeddings(columns, None)["gor"].item()
    per_dim = [
        reference.gor([array(normalize(c[:, :dim], dim=-1)) for c in columns[:2]])
        for dim in (48, 16)
    ]
    assert found == pytest.approx(3.0 * (per_dim[0] + 3 * per_dim[1]) / 4, rel=1e-9)


def test_dims_per_step_draws_dims_and_keeps_the_full_width(student, columns):
    loss = CompositeLoss(
        student, {"gor": (GORLoss(student), 1.0)}, dims=(48, 16, 8), dims_per_step=2
    )
    drawn = {tuple(loss._dims_of_step()) for _ in range(40)}
    assert drawn == {(48, 16), (48, 8)}


def test_a_stock_loss_may_be_a_term(student, columns):
    stock = MultipleNegativesRankingLoss(student)
    loss = CompositeLoss(student, {"mnrl": (stock, 0.5)})
    found = loss.compute_loss_from_embeddings(columns, None)["mnrl"].item()
    assert found == pytest.approx(
        0.5 * stock.compute_loss_from_embeddings(columns, None).item(), rel=1e-9
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dims": (49,)}, r"lie in 1..48, not \[49\]"),
        ({"dims": ()}, "dims must be distinct"),
        ({"dims": (48, 8), "dim_weights": (1,)}, "2 dims need as many weights"),
        ({"dims": (48, 8), "dims_per_step": 3}, "dims_per_step must lie in 1..2"),
        ({"mini_batch_size": 0}, "mini_batch_size must be positive, not 0"),
        ({"mini_batch_tokens": -5}, "mini_batch_tokens must be positive, not -5"),
    ],
)
def test_composites_that_cannot_be_are_refused(student, settings, message):
    with pytest.raises(ValueError, match=message):
        CompositeLoss(student, {"gor": (GORLoss(student), 1.0)}, **settings)


def test_a_term_without_embeddings_api_is_refused(student):
    with pytest.raises(ValueError, match="'x': Linear has no compute_loss_from_embeddings"):
        CompositeLoss(student, {"x": (torch.nn.Linear(2, 2), 1.0)})


# ---------------------------------------------------------------------------- forwards and batches


def test_one_forward_in_sorted_chunks_equals_a_forward_per_column(model, texts, monkeypatch):
    from st_jv5 import batching
    from st_jv5.losses import embed

    monkeypatch.setitem(batching.BUDGET, "cpu", 64)
    model.double().eval()
    columns = features_of(model, texts[:16], texts[16:32], texts[32:48])
    columns = [{**column, "task": "retrieval"} for column in columns]
    merged = embed.embed_columns(model, columns)
    for column, found in zip(columns, merged, strict=True):
        alone = model(dict(column))["sentence_embedding"]
        assert torch.allclose(found, alone, atol=1e-12)


def test_left_padded_columns_embed_as_right_padded_ones(model, texts, monkeypatch):
    from st_jv5 import batching
    from st_jv5.losses import embed

    monkeypatch.setitem(batching.BUDGET, "cpu", 64)
    model.double().eval()
    found = []
    for side in ("left", "right"):
        model.tokenizer.padding_side = side
        columns = features_of(model, texts[:9], texts[9:18])
        found.append(embed.embed_columns(model, [{**c, "task": "base"} for c in columns]))
    for left, right in zip(*found, strict=True):
        assert torch.allclose(left, right, atol=1e-12)


@pytest.mark.parametrize("cache", [{"mini_batch_size": 3}, {"mini_batch_tokens": 40}])
@pytest.mark.parametrize("dims", [None, (8, 48)])
def test_trap_22_gradients_under_gradcache_are_the_plain_ones_at_any_outer_scale(
    model, texts, cache, dims
):
    st_jv5.train_task(model, "retrieval")
    model.double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # chunks of another size draw other dropout masks
    columns = features_of(model, texts[:9], texts[9:18], texts[18:27])
    labels = torch.stack([unit(9, TEACHER_DIM, 1), unit(9, TEACHER_DIM, 2)], dim=1)
    torch.manual_seed(0)
    found = []
    for settings in ({}, cache):
        loss = retrieval_loss(
            model, TEACHER_DIM, learn_temperature=True, dims=dims, **settings
        ).double()
        learned = {n: p for n, p in loss.named_parameters() if p.requires_grad}
        assert any("log_temperature" in n for n in learned)
        assert any("projection" in n for n in learned)
        loss.zero_grad()
        total = sum(loss([dict(c) for c in columns], labels).values())
        (total / 4).backward()
        found.append({name: p.grad.clone() for name, p in learned.items()})
    for name, plain in found[0].items():
        assert torch.allclose(found[1][name], plain, atol=1e-10, rtol=1e-9), name
        assert plain.abs().max() > 0, name


def test_gradcache_over_a_frozen_model_trains_the_projection(student, texts):
    columns = features_of(student, texts[:6], texts[6:12])
    vectors = torch.stack([unit(6, TEACHER_DIM, 1), unit(6, TEACHER_DIM, 2)], dim=1)
    loss = clustering_loss(student, TEACHER_DIM, mini_batch_size=2)
    student.requires_grad_(False)
    student[0].projection.requires_grad_(True)
    loss([dict(c) for c in columns], vectors)["distill"].backward()
    assert student[0].projection.linear.weight.grad.abs().max() > 0


def test_gradcache_replays_the_same_dropout(model, texts):
    st_jv5.train_task(model, "retrieval")
    model.double().train()
    columns = features_of(model, texts[:6], texts[6:12])
    found = []
    for budget in (None, 2048):  # the same chunks, kept or computed again
        loss = CompositeLoss(
            model, {"infonce": (InfoNCELoss(model, 0.5), 1.0)}, mini_batch_tokens=budget
        )
        model.zero_grad()
        torch.manual_seed(3)
        sum(loss([dict(c) for c in columns]).values()).backward()
        found.append([p.grad.clone() for p in model[0].adapter_tensors("retrieval").values()])
    for plain, cached in zip(*found, strict=True):
        assert torch.equal(plain, cached)


def test_relational_teacher_is_the_base_without_adapter_or_gradient(model, texts):
    st_jv5.train_task(model, "classification")
    model.double().train()
    columns = features_of(model, texts[:4], texts[4:8])
    loss = RelationalKDLoss(model)
    found = loss([dict(c) for c in columns])["rkd"]
    found.backward()
    model.eval()
    with torch.no_grad():
        base = [model(dict(c), task="base")["sentence_embedding"] for c in columns]
        own = [model(dict(c), task="classification")["sentence_embedding"] for c in columns]
    dropless = reference.relational(
        np.concatenate([array(torch.stack(own, 1)).reshape(-1, DIM)]),
        array(torch.stack(base, 1)).reshape(-1, DIM),
    )
    evaluated = loss([dict(c) for c in columns])["rkd"].item()
    assert evaluated == pytest.approx(dropless, rel=1e-9)
    assert found.item() > 0
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert trained
    assert all(".classification." in name for name in trained)


def test_a_one_row_batch_gives_finite_losses(student, columns, teachers):
    row = [c[:1] for c in columns]
    for loss, labels, texts in (
        (retrieval_loss(student, TEACHER_DIM), teachers[:1], row),
        (text_matching_loss(student, TEACHER_DIM), torch.tensor([0.4]), row[:2]),
        (clustering_loss(student, TEACHER_DIM), teachers[:1], row[:2]),
    ):
        found = loss.compute_loss_from_embeddings(texts, labels)
        assert all(torch.isfinite(value) for value in found.values())


def test_settings_of_every_loss_can_stand_in_a_model_card(student):
    import json

    losses = [
        retrieval_loss(student, TEACHER_DIM, dims=(48, 8)),
        text_matching_loss(student, TEACHER_DIM),
        clustering_loss(student, TEACHER_DIM),
        classification_loss(student),
    ]
    told = [json.loads(json.dumps(loss.get_config_dict())) for loss in losses]
    assert told[0]["terms"]["infonce"]["temperature"] == 0.02
    assert told[3]["terms"]["rkd"]["weight"] == 20


def test_clustering_tells_classes_apart_where_the_labels_name_them(student, columns, teachers):
    loss = clustering_loss(
        with_adapters(student).double(), TEACHER_DIM, infonce_weight=0.5, temperature=0.1
    )
    assert loss.active_terms(torch.zeros(2, 1, dtype=torch.long)) == ["distill"]
    labels = torch.tensor([[[-1, i], [-1, i], [-1, 9], [-1, 9]] for i in range(len(columns[0]))])
    found = loss.compute_loss_from_embeddings(columns, labels)
    rows = [array(c) for c in columns]
    there = reference.info_nce(rows[0], np.concatenate(rows[1:]), 0.1)
    back = reference.info_nce(rows[1], rows[0], 0.1)
    assert found["infonce"].item() == pytest.approx(0.5 * (there + back), rel=1e-6)
    assert found["distill"].item() == 0


def test_text_matching_may_spread_the_unscored_batches(student, columns, teachers):
    loss = text_matching_loss(student, TEACHER_DIM, gor_weight=2.0)
    found = loss.compute_loss_from_embeddings(columns[:2], teachers[:, :2])
    expected = 2 * reference.gor([array(c) for c in columns[:2]])
    assert found["gor"].item() == pytest.approx(expected, rel=1e-6)
    scored = loss.compute_loss_from_embeddings(columns[:2], torch.rand(len(columns[0])))
    assert scored["gor"].item() == 0 < scored["cosent"].item()


def test_without_a_teacher_no_composition_distils_or_asks_for_a_projection(student):
    classes = torch.tensor([[[-1, 0], [-1, 0]], [[-1, 1], [-1, 1]]])
    assert set(retrieval_loss(student, None).weights) == {"infonce", "gor"}
    matching = text_matching_loss(student, None)
    assert matching.active_terms(None) == ["infonce"]
    assert matching.active_terms(torch.tensor([0.1, 0.9])) == ["cosent"]
    grouping = clustering_loss(student, None, infonce_weight=1.0)
    assert grouping.active_terms(classes) == ["infonce"]
    assert set(classification_loss(student).weights) == {"infonce", "rkd"}
    assert student[0].projection is None
