"""Tasks of rows of one's own, from lists and from files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import mteb
import numpy as np
import pytest

from st_jv5.cli import evaluate as main
from st_jv5.evaluation import own_tasks as module
from st_jv5.evaluation.choose import choose_tasks
from st_jv5.evaluation.compare import compare
from st_jv5.evaluation.mteb_encoder import MTEBEncoder
from st_jv5.evaluation.own_tasks import LEAST_PER_LABEL, file_tasks, own_tasks, tasks_of_files
from st_jv5.evaluation.scoring import evaluate
from tests.conftest import real_texts


def by_type(made: module.OwnTasks) -> dict:
    return {task.metadata.type: task for task in made.tasks}


def test_a_querys_documents_stand_among_negatives_and_documents_for_training(monkeypatch):
    monkeypatch.setattr(module, "DISTRACTORS", 3)
    rows = [
        {"query": "a", "positive": "A", "negative_1": "no A"},
        {"query": "a", "positive": "also A", "negative_1": None},
        {"query": "b", "positive": "B", "negative_1": "A"},
    ]
    training = [{"query": str(i), "positive": f"T{i}"} for i in range(9)]
    training[1] = {"query": "b", "positive": "B too"}  # relevant wherever it stands
    (task,) = own_tasks("a/faq", rows, training).tasks
    task.load_data()
    data = task.dataset["default"]["test"]
    documents = dict(zip(data["corpus"]["id"], data["corpus"]["text"], strict=True))
    assert sorted(documents.values()) == ["A", "B", "B too", "T0", "T2", "also A", "no A"]
    queries = dict(zip(data["queries"]["id"], data["queries"]["text"], strict=True))
    found = {
        queries[query]: {documents[one] for one in its}
        for query, its in data["relevant_docs"].items()
    }
    assert found == {"a": {"A", "also A"}, "b": {"B", "B too"}}
    assert task.metadata.name == "a-faq (held out)"  # it names files


def test_labels_are_classified_after_texts_for_training_and_clustered_where_they_are_enough():
    rows = [
        {"text": f"{label} {i}", "label": label} for label in "xyz" for i in range(LEAST_PER_LABEL)
    ]
    rows.append({"text": "rare", "label": "w"})
    training = [{"text": f"{label} few {i}", "label": label} for label in "xyw" for i in range(30)]
    found = by_type(own_tasks("topics", rows, training))
    classified = found["Classification"]
    classified.load_data()
    assert classified.labels == {"x", "y", "w"}  # z has no text for training
    assert len(classified.dataset["train"]) == 3 * module.TRAINING_TEXTS
    assert len(classified.dataset["test"]) == 2 * LEAST_PER_LABEL + 1
    clustered = found["Clustering"]
    clustered.load_data()
    assert clustered.metadata.name == "topics (held out, clustering)"
    assert set(clustered.dataset["test"]["labels"]) == {"x", "y", "z"}


def test_scores_make_similarities_and_two_scores_pairs_that_belong_together_or_not():
    def rows(*scores: float) -> list[dict]:
        return [{"query": f"q{i}", "positive": f"p{i}", "score": s} for i, s in enumerate(scores)]

    assert list(by_type(own_tasks("s", rows(0, 0.5, 5)))) == ["STS"]
    (pairs,) = own_tasks("s", rows(1, 5, 5)).tasks
    pairs.load_data()
    assert pairs.metadata.type == "PairClassification"
    assert pairs.dataset["test"]["labels"] == [0, 1, 1]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "there are no rows"),
        ([{"text": "a"}], "nothing can be asked of single texts"),
        ([{"query": "a", "positive": "b", "score": 1.0}], "all scores under test are 1"),
        ([{"text": "a", "label": ["x", "y"]}], "several labels each"),
        ([{"text": "a", "label": "x"}], "no clustering, for 0 of its labels"),
        ([{"text": "a", "label": "x"}], "no classification, for 1 of its labels"),
    ],
)
def test_what_cannot_be_asked_is_told(rows, told):
    made = own_tasks("s", rows, [{"text": "b", "label": "x"}] if "label" in str(rows) else ())
    assert not made.tasks
    assert any(told in one for one in made.left_out)


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_files_are_scored_as_mteb_scores_their_tasks(saved, tmp_path, capsys, monkeypatch):
    texts = real_texts(48)
    files = [
        write(
            tmp_path / "faq.jsonl",
            [{"query": t[:30], "document": t} for t in texts if len(t) > 60],
        ),
        write(
            tmp_path / "topics.jsonl",
            [{"text": t, "label": i % 2} for i, t in enumerate(texts)],
        ),
        write(
            tmp_path / "pairs.jsonl",
            [
                {"sentence1": a, "sentence2": b, "score": i % 3}
                for i, (a, b) in enumerate(zip(texts[::2], texts[1::2], strict=True))
            ],
        ),
    ]
    out = tmp_path / "eval"
    main(["--model", saved, "--own", *files, "--output", str(out), "--trained-on", "faq"])
    printed = capsys.readouterr().out
    assert "Near: faq. Far: pairs, topics." in printed
    record = json.loads((out / "results.json").read_text())["results"]
    names = ["faq (own)", "topics (own)", "topics (own, clustering)", "pairs (own)"]
    assert [row["task"] for row in record] == names
    assert all(name in printed for name in names)
    assert all(row["samples"] for row in record)  # so there are intervals
    assert [row["text_kind"] for row in record] == ["faq", "topics", "topics", "pairs"]
    sides = compare([str(out)], trained_on=["pairs", "faq"], resamples=10)  # from the record alone
    assert "Near: pairs, faq. Far: topics." in sides
    assert "| near: mean of 2 tasks |" in sides
    adapters = ["retrieval", "classification", "clustering", "text-matching"]
    assert [row["adapter"] for row in record] == adapters
    # mteb itself, without our cache or memory, gives the same.
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(saved)
    for row, task in zip(record, [t for f in files for t in file_tasks(f).tasks], strict=True):
        encoder = MTEBEncoder(model)
        (found,) = mteb.evaluate(encoder, task, cache=None, co2_tracker=False).task_results
        np.testing.assert_allclose(row["main_score"], found.get_score(), atol=1e-5)
    # Other rows under the same name are another score.
    write(tmp_path / "faq.jsonl", [{"query": t[-30:], "document": t} for t in texts])
    rows = evaluate(MTEBEncoder(model), file_tasks(files[0]).tasks, out)
    assert rows[0]["data"] != record[0]["data"]


@pytest.fixture
def folders(tmp_path) -> list[str]:
    """Files of one stem, of one name, and packed."""
    files = [
        tmp_path / name for name in ("a/faq.jsonl", "b/faq.jsonl", "b/faq.csv", "topics.csv.gz")
    ]
    for number, path in enumerate(files):
        path.parent.mkdir(exist_ok=True)
        rows = [(f"question {number} {i}", f"answer {number} {i}") for i in range(9)]
        if path.suffix == ".jsonl":
            write(path, [{"question": q, "answer": a} for q, a in rows])
        elif path.suffix == ".csv":
            path.write_text("query,document\n" + "".join(f"{q},{a}\n" for q, a in rows))
        else:
            lines = "".join(f"{q},{i % 2}\n" for i, (q, _) in enumerate(rows * 4))
            path.write_bytes(gzip.compress(f"text,label\n{lines}".encode()))
    return [str(path) for path in files]


def test_files_of_one_name_make_tasks_of_names_of_their_own(folders):
    tasks = tasks_of_files([*folders, folders[0]]).tasks
    names = ["a-faq (own)", "b-faq.jsonl (own)", "faq.csv (own)"]
    assert [task.metadata.name for task in tasks[:3]] == names
    assert len(tasks) == 5
    assert [task.text_kind for task in tasks] == ["faq"] * 3 + ["topics"] * 2
    assert [task.metadata.name for task in tasks[3:]] == [
        "topics (own)",
        "topics (own, clustering)",
    ]
    (alone,) = tasks_of_files(folders[1:2]).tasks
    assert alone.metadata.name == "faq (own)"


def test_types_choose_among_own_tasks_and_languages_leave_them(folders):
    own = tasks_of_files(folders).tasks

    def names(**settings) -> set[str]:
        return {task.metadata.type for task in choose_tasks([], [], "", own=own, **settings)}

    assert names() == {"Retrieval", "Classification", "Clustering"}
    assert names(types=["Clustering"]) == {"Clustering"}
    assert names(languages=["deu"]) == names()  # nobody has said which theirs is
    with pytest.raises(ValueError, match=r"no task is left of 5 by --types STS"):
        names(types=["STS"])


def test_the_readmes_file_of_questions_and_answers_is_a_task(tmp_path):
    rows = [{"question": f"q{i}", "answer": f"a{i}", "negative": f"n{i}"} for i in range(9)]
    (task,) = file_tasks(write(tmp_path / "faq.jsonl", rows)).tasks
    task.load_data()
    data = task.dataset["default"]["test"]
    assert len(data["queries"]) == 9
    assert len(data["corpus"]) == 18  # with the file's own hard negatives


def test_a_file_that_makes_no_task_is_told_with_its_name(saved, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}])
    with pytest.raises(SystemExit, match=r"a\.jsonl: .*no classification"):
        main(["--model", saved, "--own", path])
    with pytest.raises(SystemExit, match=r"no file .*absent\.csv"):
        main(["--model", saved, "--own", str(tmp_path / "absent.csv")])
