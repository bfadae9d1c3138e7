"""Several teachers side by side, and a space per column."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import st_jv5
from st_jv5.teacher import ColumnStores, SeveralTeachers, TeacherStore

NAMES = [f"text {i}" for i in range(20)]


def filled(folder, name: str, dim: int, order: list[str], dtype: str = "float32") -> TeacherStore:
    """A space with a vector for each name, written in some order."""
    store = TeacherStore.open(folder, create=True).space(name, dim=dim, dtype=dtype)
    vectors = dict(zip(NAMES, table(name, dim), strict=True))
    store.add(order, torch.stack([vectors[text] for text in order]))
    return store


def table(name: str, dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(name) + dim)
    return 3 * torch.randn(len(NAMES), dim, generator=generator)


def test_the_cosine_of_several_teachers_is_the_weighted_mean_of_theirs(tmp_path):
    one = filled(tmp_path, "one", 5, NAMES)
    two = filled(tmp_path, "other", 8, NAMES[::-1])  # other rows for the same texts
    both = SeveralTeachers([one, two], weights=[3, 1])
    rows = both.rows(NAMES)
    assert not np.array_equal(rows, two.rows(NAMES))
    vectors = both.gather(rows)
    assert vectors.shape == (20, 13)
    assert both.dim == 13
    cosines = [normalize(table(*key)) for key in (("one", 5), ("other", 8))]
    expected = 0.75 * cosines[0] @ cosines[0].T + 0.25 * cosines[1] @ cosines[1].T
    torch.testing.assert_close(vectors @ vectors.T, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(20))
    assert both.describe()["teacher_weights"] == [3, 1]
    assert [t["teacher"] for t in both.describe()["teachers"]] == ["one", "other"]


def test_a_text_that_one_teacher_lacks_is_missing(tmp_path):
    one, two = filled(tmp_path, "one", 5, NAMES), filled(tmp_path, "other", 8, NAMES[3:])
    both = SeveralTeachers([one, two])
    rows = both.rows(NAMES, missing_ok=True)
    assert (rows[:3] == -1).all()
    assert (rows[3:] >= 0).all()
    with pytest.raises(KeyError, match=r"3 of 20 texts have no vector .*\(other, prompt ''\)"):
        both.rows(NAMES)
    found = both.gather(np.stack([rows[:4], rows[4:8]]), missing_ok=True)
    assert found.shape == (2, 4, 13)
    assert torch.isnan(found).all(dim=-1).tolist() == [[True] * 3 + [False], [False] * 4]
    with pytest.raises(IndexError, match="3 of 20 rows are not in"):
        both.gather(rows)


def test_the_stores_dtypes_decide_the_views(tmp_path):
    halves = [filled(tmp_path, name, 4, NAMES, "float16") for name in ("a", "bb")]
    assert SeveralTeachers(halves).gather(halves[0].rows(NAMES)).dtype == torch.float16
    mixed = [halves[0], filled(tmp_path, "ccc", 4, NAMES, "bfloat16")]
    assert SeveralTeachers(mixed).gather(halves[0].rows(NAMES)).dtype == torch.float32


def test_each_column_reads_its_own_store(tmp_path):
    queries, documents = filled(tmp_path, "q", 5, NAMES), filled(tmp_path, "doc", 5, NAMES[::-1])
    columns = ColumnStores([queries, documents])
    labels = np.stack([queries.rows(NAMES[:6]), documents.rows(NAMES[6:12])], axis=1)
    labels[2, 1] = -1
    found = columns.gather(torch.from_numpy(labels), missing_ok=True)
    assert torch.equal(found[:, 0], table("q", 5)[:6])
    assert torch.isnan(found[2, 1]).all()
    assert torch.equal(found[3:, 1], table("doc", 5)[9:12])
    assert torch.equal(columns.gather(labels[:, :1]), found[:, :1])  # fewer columns
    told = [space["teacher"] for space in columns.describe()["columns"]]
    assert told == ["q", "doc"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s, w: SeveralTeachers([]), "at least one store"),
        (lambda s, w: SeveralTeachers([s, s], [1.0]), "2 stores need as many weights, got 1"),
        (lambda s, w: SeveralTeachers([s], [0.0]), r"above 0, not \[0.0\]"),
        (lambda s, w: SeveralTeachers([s], [float("nan")]), r"finite and above 0, not \[nan\]"),
        (lambda s, w: ColumnStores([]), "at least one store"),
        (lambda s, w: ColumnStores([s, w]), r"of one width, not \[5, 8\]"),
        (lambda s, w: ColumnStores([s]).gather([[0, 0]]), r"\(1, 2\) name more columns than"),
    ],
)
def test_views_that_cannot_be_are_refused(tmp_path, make, message):
    store, wide = filled(tmp_path, "one", 5, NAMES), filled(tmp_path, "other", 8, NAMES)
    with pytest.raises(ValueError, match=message):
        make(store, wide)


def test_a_loss_distils_several_teachers_and_columns_as_their_vectors(student, texts, tmp_path):
    spaces = {}
    for prompt in ("q: ", "d: "):
        for name, dim in (("one", 5), ("other", 8)):
            store = TeacherStore.open(tmp_path, create=True)
            store = store.space(name, prompt=prompt, dim=dim, dtype="float32")
            store.add(texts, torch.randn(len(texts), dim))
            spaces[prompt, name] = store
    by_column = [
        SeveralTeachers([spaces[prompt, "one"], spaces[prompt, "other"]], [1, 2])
        for prompt in ("q: ", "d: ")
    ]
    store = ColumnStores(by_column)
    columns = [texts[:4], texts[4:8]]
    pairs = zip(by_column, columns, strict=True)
    labels = torch.from_numpy(np.stack([one.rows(column) for one, column in pairs], axis=1))
    features = [student.preprocess(column) for column in columns]
    loss = st_jv5.losses.clustering_loss(student, store.dim, store=store, dims=(16, 48))
    by_rows = loss(features, labels)["distill"]
    by_vectors = loss(features, store.gather(labels))["distill"]
    assert by_rows.item() == pytest.approx(by_vectors.item(), rel=1e-6)
    assert by_rows.requires_grad
