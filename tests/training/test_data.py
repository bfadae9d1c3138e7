"""From files to training rows."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from st_jv5.teacher import TeacherStore
from training.config import DataSet
from training.corpora import example_pairs, path_similarity, rows, similarity_pairs
from training.data import (
    contrastive_rows,
    mine,
    paragraphs,
    read_rows,
    teacher_texts,
    training_set,
)
from training.strict import RecipeError

WORDNET = DataSet(
    path="training/data/wordnet.parquet",
    columns={"query": "lemmas", "positive": "gloss"},
    where={"split": "train", "category": "noun.*|!noun.Tops"},
    limit=40,
)


def test_rows_are_filtered_limited_and_drawn_by_the_seed():
    found = read_rows("a", WORDNET, seed=0)
    assert len(found) == 40
    assert set(found[0]) == {"query", "positive"}
    assert found == read_rows("b", WORDNET, seed=0) != read_rows("a", WORDNET, seed=1)
    categories = replace(WORDNET, kind="labelled", columns={"text": "gloss", "label": "category"})
    labels = {row["label"] for row in read_rows("c", replace(categories, limit=None), seed=0)}
    assert len(labels) == 25
    assert all(label.startswith("noun.") for label in labels)


def test_training_rows_come_from_the_train_split_alone():
    test = {row["gloss"] for row in rows("wordnet", "test")}
    train = {row["gloss"] for row in rows("wordnet", "train")}
    found = {row["positive"] for row in read_rows("a", replace(WORDNET, limit=None), seed=0)}
    assert found <= train
    assert len(found & test) / len(found) < 0.01  # a few glosses stand on two synsets


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "training/data/absent.parquet"}, "data_sets.x.path: no file"),
        ({"columns": {"query": "lemma", "positive": "gloss"}}, "no column 'lemma'; it has synset"),
        ({"where": {"split": "trian"}}, "no row of .* passes `where`"),
    ],
)
def test_sources_that_do_not_fit_are_named(change, message):
    with pytest.raises(RecipeError, match=message):
        read_rows("x", replace(WORDNET, **change), seed=0)


def test_jsonl_is_read_too(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"q": f"q{i}", "d": f"d{i}"}) for i in range(3)))
    spec = DataSet(path=str(path), columns={"query": "q", "positive": "d"})
    assert len(read_rows("x", spec, seed=0)) == 3


def store_of(texts: list[str], tmp_path, vectors: torch.Tensor) -> TeacherStore:
    dim = vectors.shape[1]
    store = TeacherStore.open(tmp_path, create=True).space("t", dim=dim, dtype="float32")
    store.add(texts, vectors)
    return store


def test_pairs_are_labelled_with_their_rows_of_the_store(tmp_path):
    found = read_rows("a", WORDNET, seed=0)
    by_role = teacher_texts(WORDNET, found)
    texts = list(dict.fromkeys(by_role["query"] + by_role["positive"]))
    store = store_of(texts, tmp_path, torch.randn(len(texts), 5))
    stores = {"query": store, "positive": store}
    built = training_set("a", WORDNET, found, stores, seed=0)
    assert built.column_names == ["query", "positive", "label"]
    assert built[7]["label"] == store.rows([built[7]["query"], built[7]["positive"]]).tolist()
    # The query comes first, in whatever order a recipe names the columns.
    turned = replace(WORDNET, columns=dict(reversed(WORDNET.columns.items())))
    again = training_set("a", turned, read_rows("a", turned, seed=0), stores, seed=0)
    assert again.column_names == built.column_names
    assert sorted(again["query"]) == sorted(built["query"])


def test_mined_negatives_are_the_nearest_that_are_not_relevant(tmp_path):
    from datasets import Dataset

    angles = np.deg2rad([0, 3, 20, 40, 90, 60])
    vectors = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], 1)).float()
    names = ["q", "its own", "near", "far", "q2", "its own 2"]
    store = store_of(names, tmp_path, vectors)
    pairs = Dataset.from_dict(
        {"query": ["q", "q", "q2", "q2"], "positive": ["its own", "near", "far", "its own 2"]}
    )
    mined = mine(pairs, store, store, 1)
    assert mined.column_names == ["query", "positive", "negative_1"]
    found = {(row["query"], row["positive"]): row["negative_1"] for row in mined}
    assert found[("q", "its own")] == "far"  # "near" answers the same query
    assert found[("q2", "its own 2")] == "near"


def test_classification_rows_share_a_label_with_the_positive_alone():
    texts = [f"text {i}" for i in range(40)]
    labels = [f"label {i % 5}" for i in range(40)]
    of = dict(zip(texts, labels, strict=True))
    found = contrastive_rows(texts, labels, negatives=7, seed=0)
    assert len(found) == 40
    for row in found:
        negatives = [row[f"negative_{i}"] for i in range(1, 8)]
        assert of[row["positive"]] == of[row["query"]]
        assert row["positive"] != row["query"]
        assert len(set(negatives)) == 7
        assert all(of[text] != of[row["query"]] for text in negatives)
    assert found == contrastive_rows(texts, labels, negatives=7, seed=0)


def test_several_labels_become_one_row_each():
    texts = ["both", "a1", "a2", "b1", "b2", "c1", "c2"]
    labels = [["a", "b"], ["a"], ["a"], ["b"], ["b"], ["c"], ["c"]]
    found = contrastive_rows(texts, labels, negatives=1, seed=0)
    of_both = [row for row in found if row["query"] == "both"]
    assert len(of_both) == 2
    assert {row["positive"][0] for row in of_both} == {"a", "b"}
    assert {row["negative_1"][0] for row in of_both} == {"c"}


def test_labels_that_allow_no_row_are_refused():
    with pytest.raises(ValueError, match="2 texts in 2 labels leave no anchor"):
        contrastive_rows(["x", "y"], ["a", "b"], negatives=1, seed=0)


# ------------------------------------------------------------------------------------ WordNet


def test_path_similarity_counts_edges():
    def synset(name: str, path: str) -> dict[str, str]:
        return {"synset": name, "hypernym_path": path}

    dog, wolf, cat = (
        synset("dog", "canine animal"),
        synset("wolf", "canine animal"),
        synset("cat", "animal"),
    )
    assert path_similarity(dog, dog) == 1
    assert path_similarity(dog, wolf) == 1 / 3
    assert path_similarity(dog, synset("canine", "animal")) == 1 / 2
    assert path_similarity(dog, cat) == 1 / 4
    assert path_similarity(dog, synset("run", "move")) == 0


def test_similarity_pairs_are_graded_and_of_their_split():
    synsets = rows("wordnet", "validation")
    pairs = similarity_pairs(synsets, 300, seed=0)
    glosses = {row["gloss"] for row in synsets}
    assert len(pairs) == 300
    assert len({round(pair["score"], 4) for pair in pairs}) > 8
    assert all(pair["sentence1"] in glosses and pair["sentence2"] in glosses for pair in pairs)


@pytest.mark.parametrize(
    ("split", "count"), [("validation", 3000), ("test", 3000), ("train", 12_000)]
)
def test_no_similarity_pair_is_of_one_gloss_or_a_repeat(split, count):
    pairs = similarity_pairs(rows("wordnet", split), count, seed=20260215)
    both = {frozenset((pair["sentence1"], pair["sentence2"])) for pair in pairs}
    assert len(pairs) == len(both) == count
    assert all(len(glosses) == 2 for glosses in both)


def test_similarity_pairs_end_where_there_are_no_more():
    assert similarity_pairs([], 10, seed=0) == []
    parent = [
        {"synset": f"n{i}", "gloss": f"gloss {i}", "hypernym_path": "n9 n8"} for i in range(4)
    ]
    assert len(similarity_pairs(parent, 100, seed=0)) == 6  # 4 over 2
    alike = [{**row, "gloss": "the same"} for row in parent]
    assert similarity_pairs(alike, 100, seed=0) == []


def test_example_pairs_are_balanced_within_a_category():
    synsets = rows("wordnet", "validation")
    pairs = example_pairs(synsets, 200, seed=0)
    assert sum(pair["labels"] for pair in pairs) == len(pairs) / 2
    of_gloss = {row["gloss"]: row["category"] for row in synsets}
    of_example = {row["example"]: row["category"] for row in synsets if row["example"]}
    same = [of_gloss[p["sentence1"]] == of_example[p["sentence2"]] for p in pairs]
    assert np.mean(same) > 0.97  # a few texts stand on two synsets


# ------------------------------------------------------------- kinds that public sets come in


@pytest.fixture
def triples(tmp_path) -> DataSet:
    """Pairs with a hard negative and a score each, as public sets have them."""
    path = tmp_path / "rows.jsonl"
    rows = [
        {"q": f"q{i}", "d": f"d{i}", "n": f"n{i}", "s": i / 4, "split": "a" if i < 4 else "b"}
        for i in range(5)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSet(
        path=str(path),
        where={"split": "a"},
        columns={"negative_1": "n", "positive": "d", "query": "q"},
    )


def test_hard_negatives_that_a_set_brings_are_kept_and_not_distilled(triples, tmp_path):
    found = read_rows("x", triples, seed=0)
    wanted = teacher_texts(triples, found)
    assert set(wanted) == {"query", "positive"}
    texts = wanted["query"] + wanted["positive"]
    store = store_of(texts, tmp_path / "store", torch.randn(len(texts), 3))
    built = training_set("x", triples, found, {"query": store, "positive": store}, seed=0)
    assert built.column_names == ["query", "positive", "negative_1", "label"]
    row = built[2]
    assert row["negative_1"][1:] == row["query"][1:] == row["positive"][1:]
    assert len(row["label"]) == 2


def test_scored_pairs_have_their_score_as_label_also_when_it_is_zero(triples):
    columns = {"query": "q", "positive": "d", "score": "s"}
    spec = replace(triples, kind="scored", columns=columns)
    found = read_rows("x", spec, seed=0)
    built = training_set("x", spec, found, {}, seed=0)
    assert built.column_names == ["query", "positive", "label"]
    assert sorted(built["label"]) == [0.0, 0.25, 0.5, 0.75]
    assert teacher_texts(spec, found) == {}


def test_long_rows_join_documents_and_each_query_asks_for_the_one_that_holds_its_own():
    spec = DataSet(
        path="training/data/office_help.parquet",
        columns={"query": "title", "positive": "body"},
        where={"lang": "en", "split": "validation"},
        kind="long",
        characters=5_000,
    )
    short = read_rows("x", replace(spec, kind="pairs"), seed=0)
    long = read_rows("x", spec, seed=0)
    own = {row["positive"]: row["query"] for row in short}
    assert len(long) == len(short)
    documents = {row["positive"] for row in long}
    assert 5 < len(documents) < len(long) / 2
    assert min(map(len, documents)) >= 5_000
    for row in long:
        assert any(
            body in row["positive"] and title == row["query"] for body, title in own.items()
        ), row["query"]


def test_sets_of_the_hub_are_asked_for_by_subset_split_and_revision(monkeypatch, triples):
    from datasets import Dataset

    from training import data

    asked = {}

    def hub(path, name, **settings):
        asked.update(path=path, name=name, **settings)
        return Dataset.from_list([{"q": "a", "d": "b"}])

    monkeypatch.setattr(data, "load_dataset", hub)
    columns = {"query": "q", "positive": "d"}
    spec = DataSet("org/set", columns, subset="pair", split="train[:100]", revision="abc")
    assert read_rows("x", spec, seed=0) == [{"query": "a", "positive": "b"}]
    assert asked == {
        "path": "org/set", "name": "pair", "split": "train[:100]", "revision": "abc",
    }  # fmt: skip


def test_labelled_rows_carry_each_texts_classes_and_row_of_the_store(tmp_path):
    spec = DataSet(path="x", columns={"text": "t", "label": "l"}, kind="labelled", negatives=1)
    of = {"both": {"a", "b"}, "a1": {"a"}, "a2": {"a"}, "b1": {"b"}, "c1": {"c"}, "c2": {"c"}}
    found = [{"text": text, "label": sorted(labels)} for text, labels in of.items()]
    store = store_of([*of], tmp_path, torch.randn(len(of), 5))
    plain = training_set("a", spec, found, {"text": store}, seed=0)
    known = training_set("a", spec, found, {"text": store}, seed=0, labelled=True)
    for row, same in zip(plain, known, strict=True):
        texts = [row[column] for column in ("query", "positive", "negative_1")]
        for text, (missing, *ids), (place, *again) in zip(
            texts, row["label"], same["label"], strict=True
        ):
            assert (missing, place) == (-1, store.rows([text])[0])
            assert ids == again
            assert {"abc"[number] for number in ids if number >= 0} == of[text]


def test_each_pass_over_labelled_texts_has_other_positives_and_negatives():
    spec = DataSet(path="x", columns={"text": "t", "label": "l"}, kind="labelled", negatives=2)
    found = [{"text": f"text {i}", "label": f"label {i % 3}"} for i in range(60)]
    once = training_set("a", spec, found, {}, seed=0)
    thrice = training_set("a", spec, found, {}, seed=0, draws=3)
    assert [thrice[i] for i in range(60)] == [once[i] for i in range(60)]
    positives = [
        {row["query"]: row["positive"] for row in thrice.select(range(begin, begin + 60))}
        for begin in (0, 60, 120)
    ]
    assert all({*one} == {row["text"] for row in found} for one in positives)
    kept = sum(positives[0][text] == positives[1][text] for text in positives[0])
    assert kept < 15  # of 60, where chance keeps three


def test_parts_of_one_text_have_its_number_as_label():
    long = "One sentence that is long enough to be a part of its own, by far, is this one here. "
    other = f"And {long}"
    texts = [f"{long}\nShort.\n{other}", (long[:-2] + "! ") * 2 + other * 2, "Two. Words."]
    twice = "Both pages say this, word by word, and it is long enough to stand alone. "
    texts += [f"{twice}\n{number} {long}" for number in (1, 2)]  # one part of their own each
    found = paragraphs([{"text": text} for text in texts])
    assert [(row["label"], len(row["text"])) for row in found] == [
        ("0", len(long) + 6), ("0", len(other) - 1), ("1", 2 * len(long) - 1),
        ("1", 2 * len(other) - 1),
    ]  # fmt: skip
