"""From files to training rows."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from st_jv5.evaluation.corpora import example_pairs, path_similarity, rows, similarity_pairs
from st_jv5.recipe.config import DataSet
from st_jv5.recipe.data.mine import mine
from st_jv5.recipe.data.prepare import paragraphs, read_rows
from st_jv5.recipe.data.rows import Rows
from st_jv5.recipe.data.training_sets import (
    contrastive_rows,
    replay_set,
    teacher_roles,
    training_set,
)
from st_jv5.recipe.strict import RecipeError
from st_jv5.recipe.trial import RandomVectors
from st_jv5.teacher import TeacherStore
from st_jv5.trainer.resuming import content_hash

WORDNET = DataSet(
    path="training/data/wordnet.parquet",
    columns={"query": "lemmas", "positive": "gloss"},
    where={"split": "train", "category": "noun.*|!noun.Tops"},
    limit=40,
)


@pytest.fixture
def read(tmp_path):
    """``read(spec)``: its rows, prepared in a folder of the test."""

    def read(spec: DataSet, seed: int = 0, name: str = "x", **settings) -> Rows:
        return read_rows(name, spec, seed, tmp_path / "data", **settings)

    return read


def test_rows_are_filtered_limited_and_drawn_by_the_seed(read):
    found = list(read(WORDNET))
    assert len(found) == 40
    assert set(found[0]) == {"query", "positive"}
    assert found == list(read(WORDNET, name="b")) != list(read(WORDNET, seed=1))
    categories = replace(WORDNET, kind="labelled", columns={"text": "gloss", "label": "category"})
    labels = read(replace(categories, limit=None)).labels
    assert len(labels) == 25
    assert all(label.startswith("noun.") for label in labels)


def test_training_rows_come_from_the_train_split_alone(read):
    test = {row["gloss"] for row in rows("wordnet", "test")}
    train = {row["gloss"] for row in rows("wordnet", "train")}
    found = set(read(replace(WORDNET, limit=None)).column("positive"))
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
def test_sources_that_do_not_fit_are_named(change, message, read):
    with pytest.raises(RecipeError, match=message):
        read(replace(WORDNET, **change))


def test_jsonl_is_read_too(tmp_path, read):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"q": f"q{i}", "d": f"d{i}"}) for i in range(3)))
    spec = DataSet(path=str(path), columns={"query": "q", "positive": "d"})
    assert len(read(spec)) == 3


def store_of(texts: list[str], tmp_path, vectors: torch.Tensor) -> TeacherStore:
    dim = vectors.shape[1]
    store = TeacherStore.open(tmp_path, create=True).space("t", dim=dim, dtype="float32")
    store.add(texts, vectors)
    return store


def distinct(found: Rows) -> list[str]:
    return found.texts(found.distinct())


def test_pairs_are_labelled_with_their_rows_of_the_store(tmp_path, read):
    found = read(WORDNET)
    assert teacher_roles(WORDNET) == ["query", "positive"]
    texts = distinct(found)
    store = store_of(texts, tmp_path, torch.randn(len(texts), 5))
    stores = {"query": store, "positive": store}
    built = training_set(WORDNET, found, stores, seed=0)
    assert built.column_names == ["query", "positive", "label"]
    assert built[7]["label"] == store.rows([built[7]["query"], built[7]["positive"]]).tolist()
    # The query comes first, in whatever order a recipe names the columns.
    turned = replace(WORDNET, columns=dict(reversed(WORDNET.columns.items())))
    again = training_set(turned, read(turned), stores, seed=0)
    assert again.column_names == built.column_names
    assert sorted(again["query"]) == sorted(built["query"])


def test_a_text_without_a_vector_is_shown_with_its_data_set(tmp_path, read):
    found = read(WORDNET)
    texts = distinct(found)
    store = store_of(texts[1:], tmp_path, torch.randn(len(texts) - 1, 5))
    with pytest.raises(RecipeError, match=r"data_sets.x: 1 of 40 texts have no vector.*stage 'tea"):
        training_set(WORDNET, found, {"query": store, "positive": store}, seed=0)


def test_labels_follow_a_store_that_is_filled_anew(tmp_path, read):
    """Rows of a store mean nothing in another, so labels that lie on disk are made again."""
    found = read(WORDNET)
    texts = distinct(found)
    for order in (texts, texts[::-1]):
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        (tmp_path / "store").mkdir()
        store = store_of(order, tmp_path / "store", torch.randn(len(texts), 5))
        built = training_set(WORDNET, found, {"query": store, "positive": store}, seed=0)
        assert built["label"][:] == [store.rows([row["query"], row["positive"]]).tolist()
                                     for row in found]  # fmt: skip


def library_mined(pairs, vectors_of, negatives):
    """What sentence-transformers' miner finds, which holds every vector and score."""

    class Stored(SentenceTransformer):
        def __init__(self):
            super().__init__(modules=[torch.nn.Identity()], device="cpu")

        def encode_query(self, inputs, **kwargs):
            return np.stack([vectors_of[text] for text in inputs])

        encode_document = encode_query

    mined = mine_hard_negatives(
        Dataset.from_list(pairs), Stored(), "query", "positive", range_max=50,
        relative_margin=0.05, num_negatives=negatives, output_format="n-tuple", verbose=False,
    )  # fmt: skip
    return mined.to_list()


@pytest.mark.parametrize("blocks", [(8192, 8192), (7, 11)])
def test_mined_negatives_are_those_of_the_librarys_miner(blocks, tmp_path, read, monkeypatch):
    monkeypatch.setattr("st_jv5.recipe.data.mine.QUERIES", blocks[0])
    monkeypatch.setattr("st_jv5.recipe.data.mine.DOCUMENTS", blocks[1])
    draw = np.random.default_rng(0)
    pairs = [{"query": f"q{i // 2 % 40}", "positive": f"d{int(draw.integers(90))}"}
             for i in range(120)]  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    spec = DataSet(str(path), {"query": "query", "positive": "positive"}, negatives=3)
    found = read(spec)
    texts = distinct(found)
    vectors = torch.from_numpy(draw.normal(size=(len(texts), 4))).float()
    store = store_of(texts, tmp_path, vectors)
    built = training_set(spec, found, {"query": store, "positive": store}, seed=0)
    unit = torch.nn.functional.normalize(vectors, dim=1).numpy()
    expected = library_mined(list(found), dict(zip(texts, unit, strict=True)), 3)
    assert [{k: v for k, v in row.items() if k != "label"} for row in built] == expected
    assert 20 < len(expected) <= len(found)
    assert built[5]["label"] == store.rows([built[5]["query"], built[5]["positive"]]).tolist()


def test_mining_holds_a_block_of_scores_whatever_the_number_of_documents(monkeypatch):
    """All scores of these pairs would be a hundred times the largest block."""
    count, largest = 5_000, 0
    monkeypatch.setattr("st_jv5.recipe.data.mine.QUERIES", 500)
    monkeypatch.setattr("st_jv5.recipe.data.mine.DOCUMENTS", 500)
    topk = torch.Tensor.topk

    def watched(self, *args, **settings):
        nonlocal largest
        largest = max(largest, self.numel())
        return topk(self, *args, **settings)

    monkeypatch.setattr(torch.Tensor, "topk", watched)
    every = np.arange(count)
    vectors = RandomVectors(16)
    mined = mine(every, every, every, every, vectors, vectors, 1)
    assert len(mined) > 4000
    assert largest <= 500 * 500


def drawn(texts, labels, negatives, seed=0):
    """Contrastive rows with texts in place of their numbers."""
    names = sorted({one for its in labels for one in its})
    own = [frozenset(names.index(one) for one in its) for its in labels]
    return [[texts[i] for i in row] for row in contrastive_rows(own, negatives, seed).tolist()]


def test_classification_rows_share_a_label_with_the_positive_alone():
    texts = [f"text {i}" for i in range(40)]
    labels = [[f"label {i % 5}"] for i in range(40)]
    of = dict(zip(texts, labels, strict=True))
    found = drawn(texts, labels, 7)
    assert len(found) == 40
    for query, positive, *negatives in found:
        assert of[positive] == of[query]
        assert positive != query
        assert len(set(negatives)) == 7
        assert all(of[text] != of[query] for text in negatives)
    assert found == drawn(texts, labels, 7)


def test_several_labels_become_one_row_each():
    texts = ["both", "a1", "a2", "b1", "b2", "c1", "c2"]
    labels = [["a", "b"], ["a"], ["a"], ["b"], ["b"], ["c"], ["c"]]
    of_both = [row for row in drawn(texts, labels, 1) if row[0] == "both"]
    assert len(of_both) == 2
    assert {positive[0] for _, positive, _ in of_both} == {"a", "b"}
    assert {negative[0] for _, _, negative in of_both} == {"c"}


def test_labels_that_allow_no_row_are_refused():
    with pytest.raises(ValueError, match="2 texts in 2 labels leave no anchor"):
        drawn(["x", "y"], [["a"], ["b"]], 1)


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


def test_hard_negatives_that_a_set_brings_are_kept_and_not_distilled(triples, tmp_path, read):
    found = read(triples)
    assert sorted(teacher_roles(triples)) == ["positive", "query"]
    texts = [*found.column("query"), *found.column("positive")]
    store = store_of(texts, tmp_path / "store", torch.randn(len(texts), 3))
    built = training_set(triples, found, {"query": store, "positive": store}, seed=0)
    assert built.column_names == ["query", "positive", "negative_1", "label"]
    row = built[2]
    assert row["negative_1"][1:] == row["query"][1:] == row["positive"][1:]
    assert len(row["label"]) == 2


def test_scored_pairs_have_their_score_as_label_also_when_it_is_zero(triples, read):
    columns = {"query": "q", "positive": "d", "score": "s"}
    spec = replace(triples, kind="scored", columns=columns)
    built = training_set(spec, read(spec), {}, seed=0)
    assert built.column_names == ["query", "positive", "label"]
    assert sorted(built["label"]) == [0.0, 0.25, 0.5, 0.75]
    assert teacher_roles(spec) == []


def test_long_rows_join_documents_and_each_query_asks_for_the_one_that_holds_its_own(read):
    spec = DataSet(
        path="training/data/office_help.parquet",
        columns={"query": "title", "positive": "body"},
        where={"lang": "en", "split": "validation"},
        kind="long",
        characters=5_000,
    )
    short = read(replace(spec, kind="pairs"))
    long = read(spec)
    own = {row["positive"]: row["query"] for row in short}
    assert len(long) == len(short)
    documents = set(long.column("positive"))
    assert 5 < len(documents) < len(long) / 2
    assert min(map(len, documents)) >= 5_000
    for row in long:
        assert any(
            body in row["positive"] and title == row["query"] for body, title in own.items()
        ), row["query"]


def test_sets_of_the_hub_are_asked_for_by_subset_split_and_revision(monkeypatch, read):
    asked = {}

    def hub(path, name, **settings):
        asked.update(path=path, name=name, **settings)
        return Dataset.from_list([{"q": "a", "d": "b"}])

    monkeypatch.setattr("st_jv5.recipe.data.sources.load_dataset", hub)
    columns = {"query": "q", "positive": "d"}
    spec = DataSet("org/set", columns, subset="pair", split="train[:100]", revision="abc")
    assert list(read(spec)) == [{"query": "a", "positive": "b"}]
    assert asked == {
        "path": "org/set", "name": "pair", "split": "train[:100]", "revision": "abc",
    }  # fmt: skip


@pytest.fixture
def of_the_hub(monkeypatch, read):
    """``of_the_hub(dataset, **columns)``: the rows of a set that the Hub would give."""

    def rows_of(dataset: Dataset, kind: str, **columns) -> Rows:
        monkeypatch.setattr(
            "st_jv5.recipe.data.sources.load_dataset", lambda *args, **settings: dataset
        )
        return read(DataSet("org/set", columns, kind=kind))

    return rows_of


@pytest.mark.parametrize(
    ("feature", "values", "labels"),
    [
        (ClassLabel(names=["cat", "dog"]), [1, 0], ["dog", "cat"]),
        (Value("int64"), [7, 12], ["7", "12"]),
        (Value("string"), ["7", "x"], ["7", "x"]),
        (List(ClassLabel(names=["cat", "dog"])), [[1, 0], [0]], [["dog", "cat"], ["cat"]]),
        (List(Value("int32")), [[3], [4, 5]], [["3"], ["4", "5"]]),
    ],
)
def test_labels_of_any_type_are_read_by_their_names(feature, values, labels, of_the_hub):
    features = Features({"t": Value("string"), "l": feature})
    dataset = Dataset.from_dict({"t": ["one", "two"], "l": values}, features)
    found = of_the_hub(dataset, "labelled", text="t", label="l")
    assert {row["text"]: row["label"] for row in found} == dict(
        zip(["one", "two"], labels, strict=True)
    )
    assert found.labels == {label for its in labels for label in ([its] if isinstance(its, str)
                                                                   else its)}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "columns", "message"),
    [
        ("labelled", {"text": "t", "label": "none"}, "column 'none' .* no label in row 1 "),
        ("labelled", {"text": "t", "label": "unknown"}, "column 'unknown' .* no label in row 1 "),
        ("labelled", {"text": "t", "label": "nested"}, "column 'nested' .* not labels"),
        ("scored", {"query": "t", "positive": "t", "score": "none"}, "no score in row 1 "),
        ("scored", {"query": "t", "positive": "t", "score": "nan"}, "no score in row 1 "),
        (
            "scored",
            {"query": "t", "positive": "t", "score": "t"},
            "'t' .*'one' in row 0 .*not a score",
        ),
        ("texts", {"text": "unknown"}, "column 'unknown' .* holds int64, not text"),
        ("texts", {"text": "nested"}, "column 'nested' .* not text"),
    ],
)
def test_values_that_cannot_be_used_are_named_by_column_and_row(kind, columns, message, of_the_hub):
    dataset = Dataset.from_dict(
        {"t": ["one", "two"], "none": ["1", None], "unknown": [0, -1], "nan": [0.5, float("nan")],
         "nested": [{"a": 1}, {"a": 2}]},
        Features({"t": Value("string"), "none": Value("string"), "nan": Value("float64"),
                  "unknown": ClassLabel(names=["cat"]), "nested": {"a": Value("int64")}}),
    )  # fmt: skip
    with pytest.raises(RecipeError, match=rf"data_sets.x: .*{message}"):
        of_the_hub(dataset, kind, **columns)


def labelled_file(tmp_path, pairs) -> DataSet:
    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(json.dumps({"t": t, "l": label}) + "\n" for t, label in pairs))
    return DataSet(str(path), {"text": "t", "label": "l"}, kind="labelled")


def test_labelled_rows_carry_each_texts_classes_and_row_of_the_store(tmp_path, read):
    of = {"both": {"a", "b"}, "a1": {"a"}, "a2": {"a"}, "b1": {"b"}, "c1": {"c"}, "c2": {"c"}}
    spec = labelled_file(tmp_path, [(text, sorted(its)) for text, its in of.items()])
    spec, found = replace(spec, negatives=1), read(spec)
    store = store_of([*of], tmp_path, torch.randn(len(of), 5))
    plain = training_set(spec, found, {"text": store}, seed=0)
    known = training_set(spec, found, {"text": store}, seed=0, labelled=True)
    for row, same in zip(plain, known, strict=True):
        texts = [row[column] for column in ("query", "positive", "negative_1")]
        for text, (missing, *ids), (place, *again) in zip(
            texts, row["label"], same["label"], strict=True
        ):
            assert (missing, place) == (-1, store.rows([text])[0])
            assert ids == again
            assert {"abc"[number] for number in ids if number >= 0} == of[text]


def test_each_pass_over_labelled_texts_has_other_positives_and_negatives(tmp_path, read):
    spec = labelled_file(tmp_path, [(f"text {i}", f"label {i % 3}") for i in range(60)])
    spec, found = replace(spec, negatives=2), read(spec)
    once = training_set(spec, found, {}, seed=0)
    thrice = training_set(spec, found, {}, seed=0, draws=3)
    assert [thrice[i] for i in range(60)] == [once[i] for i in range(60)]
    positives = [
        {row["query"]: row["positive"] for row in thrice.select(range(begin, begin + 60))}
        for begin in (0, 60, 120)
    ]
    assert all({*one} == {row["text"] for row in found} for one in positives)
    kept = sum(positives[0][text] == positives[1][text] for text in positives[0])
    assert kept < 15  # of 60, where chance keeps three


def test_draws_of_labelled_texts_hold_numbers_in_place_of_texts(tmp_path, read):
    texts = [f"text {i} {'long ' * 200}" for i in range(60)]
    spec = labelled_file(tmp_path, [(text, f"label {i % 3}") for i, text in enumerate(texts)])
    built = training_set(spec, found := read(spec), {}, seed=0, draws=50)
    (path,) = found.folder.glob("contrastive-*.arrow")
    assert len(built) == 50 * 60
    assert path.stat().st_size < 50 * 60 * 9 * 32  # nine texts a row of a kilobyte each
    assert built[7]["query"] in texts


def test_a_checkpoint_tells_looked_up_texts_from_others_in_their_place(tmp_path, read):
    def content(texts: list[str]) -> str:
        spec = labelled_file(tmp_path, [(text, f"label {i % 3}") for i, text in enumerate(texts)])
        return content_hash(training_set(spec, read(spec), {}, seed=0))

    texts = [f"text {i}" for i in range(30)]
    assert content(texts) != content([*texts[:-1], "text of 29"])
    assert content(texts) == content(texts)  # the file was written anew meanwhile


def test_parts_of_one_text_have_its_number_as_label():
    long = "One sentence that is long enough to be a part of its own, by far, is this one here. "
    other = f"And {long}"
    texts = [f"{long}\nShort.\n{other}", (long[:-2] + "! ") * 2 + other * 2, "Two. Words."]
    twice = "Both pages say this, word by word, and it is long enough to stand alone. "
    texts += [f"{twice}\n{number} {long}" for number in (1, 2)]  # one part of their own each
    found = paragraphs(lambda: texts)
    assert [(row["label"], len(row["text"])) for row in found] == [
        ("0", len(long) + 6), ("0", len(other) - 1), ("1", 2 * len(long) - 1),
        ("1", 2 * len(other) - 1),
    ]  # fmt: skip


def test_every_text_of_a_replayed_set_stands_alone_and_once(tmp_path, read):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"q": "a", "d": "b"}\n{"q": "a", "d": "c"}\n')
    found = read(DataSet(str(path), {"query": "q", "positive": "d"}))
    store = store_of(["a", "b", "c"], tmp_path, torch.randn(3, 5))
    built = replay_set(found, store)
    assert sorted(built["text"]) == ["a", "b", "c"]
    assert all(row["label"] == store.rows([row["text"]]).tolist() for row in built)
