"""What a composite adds to its terms: schedules, dims, maps per dim, stock terms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
    EmbedDistillLoss,
    GlobalOrthogonalRegularizationLoss,
    MultipleNegativesRankingLoss,
    TripletLoss,
)
from torch.nn.functional import normalize

import st_jv5
from st_jv5.losses import (
    CompositeLoss,
    GORLoss,
    InfoNCELoss,
    ProjectedCosineDistillLoss,
    Schedule,
    retrieval_loss,
)
from st_jv5.losses.labels import text_ids
from st_jv5.projection import Projection
from tests import reference
from tests.losses.conftest import BATCH, DIM, TEACHER_DIM, array, unit

# ------------------------------------------------------------------------------------ schedules


@pytest.mark.parametrize(
    ("shape", "halfway", "quarter"),
    [("linear", 3.0, 2.0), ("cosine", 3.0, 1 + 4 * (1 - math.sqrt(0.5)) / 2)],
)
def test_a_schedule_moves_from_start_to_end_and_stays(shape, halfway, quarter):
    weight = Schedule(1.0, 5.0, steps=100, begin=10, shape=shape)
    assert [weight.at(step) for step in (0, 10, 110, 10**6)] == [1, 1, 5, 5]
    assert weight.at(60) == pytest.approx(halfway)
    assert weight.at(35) == pytest.approx(quarter)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((-1.0, 1.0, 5, "linear"), "finite and >= 0, not -1.0 -> 1.0"),
        ((0.0, math.nan, 5, "linear"), "finite and >= 0, not 0.0 -> nan"),
        ((0.0, 1.0, 0, "linear"), "steps must be >= 1 and begin >= 0, not 0"),
        ((0.0, 1.0, 5, "square"), "shape must be one of .*not 'square'"),
    ],
)
def test_schedules_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Schedule(*settings[:3], shape=settings[3])


def test_a_weight_of_the_step_scales_its_term(student, columns):
    loss = CompositeLoss(
        student,
        {"gor": (GORLoss(student), Schedule(0.0, 4.0, steps=8)), "x": (GORLoss(student), 1)},
    )
    with pytest.raises(ValueError, match=r"'gor' goes from 0.0 to 4.0, but the loss is not given"):
        loss.compute_loss_from_embeddings(columns, None)
    whole = reference.gor([array(c) for c in columns[:2]])
    for step, weight in ((0, 0), (4, 2), (8, 4), (100, 4)):
        loss.step = step
        found = loss.compute_loss_from_embeddings(columns, None)
        assert found["gor"].item() == pytest.approx(weight * whole, rel=1e-9)
        assert found["x"].item() == pytest.approx(whole, rel=1e-9)


def test_a_constant_schedule_needs_no_step(student, columns):
    loss = CompositeLoss(student, {"gor": (GORLoss(student), Schedule(2.0, 2.0, steps=1))})
    expected = 2 * reference.gor([array(c) for c in columns[:2]])
    assert loss.compute_loss_from_embeddings(columns, None)["gor"].item() == pytest.approx(expected)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_weights_that_cannot_be_are_refused(student, weight):
    with pytest.raises(ValueError, match="term 'gor': a weight is finite and >= 0"):
        CompositeLoss(student, {"gor": (GORLoss(student), weight)})


# ----------------------------------------------------------------------------------------- dims


def test_full_width_terms_are_computed_once_and_the_others_at_every_dim(student, columns):
    terms = {"cut": (GORLoss(student), 3.0), "whole": (GORLoss(student), 5.0)}
    loss = CompositeLoss(student, terms, dims=(16, 48), full_width_terms=("whole",))
    found = loss.compute_loss_from_embeddings(columns, None)
    whole, cut = (
        reference.gor([array(normalize(c[:, :dim], dim=-1)) for c in columns[:2]])
        for dim in (48, 16)
    )
    assert found["whole"].item() == pytest.approx(5 * whole, rel=1e-9)
    assert found["cut"].item() == pytest.approx(3 * (whole + cut) / 2, rel=1e-9)
    with pytest.raises(ValueError, match="no term 'x', only cut, whole"):
        CompositeLoss(student, terms, full_width_terms=("x",))


@pytest.mark.parametrize("placement", ["student_up", "teacher_down"])
def test_a_dim_may_have_a_map_of_its_own(student, columns, teachers, placement, tmp_path):
    projection = Projection(DIM, TEACHER_DIM, placement=placement, own_map_dims=(16,)).double()
    start = projection(columns[0][:, :16], teachers[:, 0])
    shared = Projection(DIM, TEACHER_DIM, placement=placement).double()
    for one, other in zip(start, shared(columns[0][:, :16], teachers[:, 0]), strict=True):
        assert torch.equal(one, other)  # it starts as the first columns
    for parameter in projection.parameters():
        torch.nn.init.normal_(parameter)
    loss = ProjectedCosineDistillLoss(
        student, TEACHER_DIM, placement=placement, projection=projection
    )
    both = [array(teachers[:, c]) for c in range(2)]
    for dim, linear in ((16, projection.own["16"]), (48, projection.linear)):
        cut = [normalize(c[:, :dim], dim=-1) for c in columns]
        found = loss.compute_loss_from_embeddings(cut, teachers)["distill"].item()
        maps = array(linear.weight), array(linear.bias)
        expected = reference.distill([array(c) for c in cut[:2]], both, *maps, placement)
        assert found == pytest.approx(expected, abs=1e-12)
    projection.save(tmp_path)
    loaded = Projection.load(tmp_path)
    assert loaded.own_map_dims == (16,)
    assert torch.equal(loaded.own["16"].weight, projection.own["16"].weight.float())


def test_the_models_own_maps_are_taken_up_and_others_refused(student):
    ProjectedCosineDistillLoss(student, TEACHER_DIM, own_map_dims=(8, 16))
    assert retrieval_loss(student, TEACHER_DIM).losses["distill"].projection.own_map_dims == (8, 16)
    with pytest.raises(ValueError, match=r"own maps at \[8, 16\], but 48 -> 20 student_up, own"):
        ProjectedCosineDistillLoss(student, TEACHER_DIM, own_map_dims=(8,))
    with pytest.raises(ValueError, match=r"own_map_dims must lie in 1..47, not \(48,\)"):
        Projection(DIM, TEACHER_DIM, own_map_dims=(48,))


# ------------------------------------------------------------------ terms of sentence-transformers


@pytest.mark.parametrize(
    ("stock", "used", "labels"),
    [
        (MultipleNegativesRankingLoss, 4, None),
        (GlobalOrthogonalRegularizationLoss, 2, None),
        (TripletLoss, 3, None),
        (CoSENTLoss, 2, torch.arange(BATCH).double()),
    ],
)
def test_any_stock_loss_with_the_embeddings_api_may_be_a_term(
    student, columns, stock, used, labels
):
    term = stock(student)
    loss = CompositeLoss(student, {"stock": (term, 0.5), "gor": (GORLoss(student), 1.0)})
    found = loss.compute_loss_from_embeddings(columns[:used], labels)["stock"]
    alone = term.compute_loss_from_embeddings(columns[:used], labels)
    alone = sum(alone.values()) if isinstance(alone, dict) else alone
    assert found.item() == pytest.approx(0.5 * alone.item(), rel=1e-9)


def test_the_stock_distillation_may_be_a_term_and_says_where_it_cannot(student, columns, teachers):
    stock = EmbedDistillLoss(student, "cosine", projection_dim=TEACHER_DIM).double()
    terms = {"stock": (stock, 1.0), "gor": (GORLoss(student), 1.0)}
    with pytest.raises(ValueError, match=r"'stock'.* projects the full width alone"):
        CompositeLoss(student, terms, dims=(16, 48))
    with pytest.raises(ValueError, match=r"'stock'.* projects the full width alone"):
        CompositeLoss(student, terms, dims=(16,), full_width_terms=("stock",))
    loss = CompositeLoss(student, terms, dims=(16, 48), full_width_terms=("stock",))
    found = loss.compute_loss_from_embeddings(columns, teachers)["stock"].item()
    both = [array(teachers[:, c]) for c in range(2)]
    weight, bias = array(stock.projection.weight), array(stock.projection.bias)
    expected = reference.distill([array(c) for c in columns[:2]], both, weight, bias) / 2
    assert found == pytest.approx(expected, rel=1e-9)  # the stock loss averages the two columns
    with pytest.raises(ValueError, match="term 'stock' needs the teacher's vectors"):
        loss.compute_loss_from_embeddings(columns, None)


# ------------------------------------------------------------------------------ false negatives


def test_negatives_nearer_than_the_positive_by_a_margin_are_left_out(student, columns):
    # Teacher vectors for query, positive and the first negative; the second has none.
    labels = torch.stack([unit(BATCH, 3, seed) for seed in range(20, 23)], dim=1)
    margin = 0.3
    loss = InfoNCELoss(
        student,
        directions=("query_to_doc", "doc_to_query"),
        false_negative_margin=margin,
    )
    found = loss.compute_loss_from_embeddings(columns, labels)["infonce"].item()
    teacher = [array(labels[:, c]) for c in range(3)]

    def left_out(anchor: int, candidates: list[int]) -> set[tuple[int, int]]:
        own = candidates[0]
        return {
            (i, place * BATCH + j)
            for i in range(BATCH)
            for place, c in enumerate(candidates)
            if c < 3
            for j in range(BATCH)
            if reference.cos(teacher[anchor][i], teacher[c][j])
            > reference.cos(teacher[anchor][i], teacher[own][i]) + margin
        }

    there, back = left_out(0, [1, 2, 3]), left_out(1, [0])
    assert {j // BATCH for _, j in there} == {0, 1}  # some positives, some hard negatives
    assert 0 < len(back) < BATCH * (BATCH - 1)
    rows = [array(c) for c in columns]
    expected = reference.info_nce(rows[0], np.concatenate(rows[1:]), 0.02, there)
    expected += reference.info_nce(rows[1], rows[0], 0.02, back)
    assert found == pytest.approx(expected, rel=1e-6)


def test_equal_texts_are_no_negatives(model, texts):
    st_jv5.train_task(model, "retrieval")
    model.eval()
    query = [texts[0], texts[1], texts[2], texts[0]]
    positive = [texts[3], texts[4], texts[3], texts[5]]
    negative = [texts[6], texts[0], texts[4], texts[7]]
    columns = [
        model.preprocess(column, prompt="Document: ") for column in (query, positive, negative)
    ]
    both = ("query_to_doc", "doc_to_query")
    plain, masked = (
        InfoNCELoss(model, 0.3, directions=both, mask_equal_texts=on) for on in (False, True)
    )
    with torch.no_grad():
        rows = [array(model(dict(c), task="retrieval")["sentence_embedding"]) for c in columns]
        found = [loss([dict(c) for c in columns])["infonce"].item() for loss in (plain, masked)]
    documents, names = np.concatenate(rows[1:]), positive + negative
    there = {
        (i, j)
        for i in range(4)
        for j in range(8)
        if (j != i and names[j] in (positive[i], query[i])) or (j < 4 and query[j] == query[i])
    } - {(i, i) for i in range(4)}
    assert len(there) == 7
    assert {(0, 3), (3, 0)} < there  # another answer to the same question
    back = {(0, 2), (2, 0), (0, 3), (3, 0)}  # one answer to two questions, one question twice

    def expected(there: set[tuple[int, int]], back: set[tuple[int, int]]) -> float:
        one = reference.info_nce(rows[0], documents, 0.3, there)
        return one + reference.info_nce(rows[1], rows[0], 0.3, back)

    assert found[0] == pytest.approx(expected(set(), set()), rel=1e-5)
    assert found[1] == pytest.approx(expected(there, back), rel=1e-5)
    assert InfoNCELoss(model).mask_equal_texts  # by default


def test_texts_have_one_number_however_they_are_padded_or_flattened(model, texts):
    """sentence-transformers flattens batches for flash attention."""
    rows = [*texts[:5], texts[0]]
    columns = {}
    for side in ("left", "right"):
        model.tokenizer.padding_side = side
        columns[side] = model.preprocess(rows)
    mask = columns["right"]["attention_mask"].bool()
    ends = torch.nn.functional.pad(mask.sum(dim=1).cumsum(dim=0), (1, 0)).int()
    flat = {"input_ids": columns["right"]["input_ids"][mask][None], "cu_seq_lens_q": ends}
    left, right, flattened = (text_ids([one])[:, 0] for one in (*columns.values(), flat))
    assert torch.equal(left, right)
    assert torch.equal(left, flattened)
    assert left[0] == left[5]
    assert len(set(left.tolist())) == 5


def test_a_positive_counts_even_where_every_negative_is_left_out(student, columns):
    same = torch.ones(BATCH, 2, 3)
    loss = InfoNCELoss(student, false_negative_margin=-0.5)
    found = loss.compute_loss_from_embeddings(columns[:2], same)["infonce"]
    found.backward()
    assert found.item() == 0


def test_masks_say_what_they_need(student, columns):
    near = InfoNCELoss(student, false_negative_margin=0.1)
    with pytest.raises(ValueError, match="no label column"):
        CompositeLoss(student, {"infonce": (near, 1.0)}).compute_loss_from_embeddings(columns, None)
    with pytest.raises(ValueError, match="labels have one column"):
        near.compute_loss_from_embeddings(columns, torch.ones(BATCH, 1, 3))
    with pytest.raises(ValueError, match="difference of cosines, not 3"):
        InfoNCELoss(student, false_negative_margin=3)


def test_texts_of_the_anchors_own_class_are_no_negatives(student, columns):
    # Classes of every text; the third row's texts have two, one of them the first row's.
    own = [[0, -1], [1, -1], [2, 0], [1, -1], *[[9 + i, -1] for i in range(BATCH - 4)]]
    other = [[1, -1], [0, -1], [3, -1], [4, -1], *[[90 + i, -1] for i in range(BATCH - 4)]]
    by_column = [own, own, other, other]
    labels = torch.tensor([[[-1, *ids] for ids in row] for row in zip(*by_column, strict=True)])
    both = ("query_to_doc", "doc_to_query")
    loss = InfoNCELoss(student, 0.3, directions=both, mask_equal_classes=True)
    composite = CompositeLoss(student, {"infonce": (loss, 1.0)})
    found = composite.compute_loss_from_embeddings(columns, labels)["infonce"].item()

    def shared(candidates: list[int]) -> set[tuple[int, int]]:
        return {
            (i, place * BATCH + j)
            for i in range(BATCH)
            for place, c in enumerate(candidates)
            for j in range(BATCH)
            if {*own[i]} & {*by_column[c][j]} - {-1} and (place, i) != (0, j)
        }

    there, back = shared([1, 2, 3]), shared([0])
    assert {(0, 2), (2, 0), (1, 3), (3, 1)} == back
    assert (0, BATCH + 1) in there  # a hard negative of another row with the anchor's class
    rows = [array(c) for c in columns]
    expected = reference.info_nce(rows[0], np.concatenate(rows[1:]), 0.3, there)
    expected += reference.info_nce(rows[1], rows[0], 0.3, back)
    assert found == pytest.approx(expected, rel=1e-6)


def test_classes_are_asked_for_where_they_are_needed(student, columns):
    loss = InfoNCELoss(student, mask_equal_classes=True)
    for labels in (None, torch.zeros(BATCH, 4, dtype=torch.long), torch.zeros(BATCH, 4, 2)):
        with pytest.raises(ValueError, match="the classes of texts are needed"):
            loss.compute_loss_from_embeddings(columns, labels)
    with pytest.raises(
        ValueError, match="classes of all 4 columns, but the labels have those of 2"
    ):
        loss.compute_loss_from_embeddings(columns, torch.zeros(BATCH, 2, 2, dtype=torch.long))
