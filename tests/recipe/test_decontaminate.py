"""Test texts are hashed on the user's machine, and training drops them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from st_jv5.cli import main
from st_jv5.evaluation.corpora import rows
from st_jv5.recipe.data.decontaminate import read_hashes, text_hash, write_hashes
from st_jv5.recipe.data.prepare import read_rows
from st_jv5.recipe.strict import RecipeError
from tests.recipe.test_data import WORDNET


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    path = tmp_path_factory.mktemp("hashes") / "local.hashes"
    main(["decontaminate", "--local", "--out", str(path)])
    return read_hashes(path)


def test_words_alone_are_compared():
    assert text_hash("Find it: here!") == text_hash("find   it HERE") != text_hash("find it there")
    assert text_hash("!?") != text_hash("...")


@pytest.mark.parametrize(
    ("source", "columns"),
    [("wordnet", ("lemmas", "gloss")), ("wikipedia", ("description", "extract"))],
)
def test_every_test_text_of_the_local_tasks_is_listed(listed, source, columns):
    test = [row for row in rows(source, "test") if row.get("topic", "x")]  # others are no task's
    nouns_and_verbs = [row for row in test if not row.get("category", "").startswith("ad")]
    for column in columns:
        texts = [row[column] for row in nouns_and_verbs if row[column]]
        assert sum(text_hash(text) in listed for text in texts) / len(texts) > 0.99, column


def test_training_drops_what_is_listed_and_nothing_else(listed, tmp_path):
    whole = list(read_rows("a", replace(WORDNET, limit=None), 0, tmp_path))
    kept = list(read_rows("a", replace(WORDNET, limit=None), 0, tmp_path, barred=listed))
    left = {tuple(row.values()) for row in kept}
    dropped = [row for row in whole if tuple(row.values()) not in left]
    assert 0 < len(dropped) < 0.3 * len(whole)
    assert all({text_hash(t) for t in row.values()} & listed for row in dropped)
    assert not any({text_hash(t) for t in row.values()} & listed for row in kept)


def test_labels_are_no_texts_of_a_row(tmp_path):
    labelled = replace(WORDNET, kind="labelled", columns={"text": "gloss", "label": "category"})
    found = read_rows("a", labelled, 0, tmp_path)
    barred = {text_hash(found[0]["label"])}
    assert list(read_rows("a", labelled, 0, tmp_path, barred=barred)) == list(found)


def test_a_list_that_is_none_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"st-jv5 decontaminate"):
        read_hashes(tmp_path / "absent")
    write_hashes(tmp_path / "list", [3, 1, 1])
    assert read_hashes(tmp_path / "list") == {1, 3}
    whole = (tmp_path / "list").read_bytes()
    for broken in (whole[:-3], b"", b"text"):
        (tmp_path / "list").write_bytes(broken)
        with pytest.raises(RecipeError, match="is not a complete list"):
            read_hashes(tmp_path / "list")
    whole = read_rows("a", replace(WORDNET, limit=None), 0, tmp_path)
    write_hashes(tmp_path / "list", {text_hash(row["query"]) for row in whole})
    with pytest.raises(
        RecipeError, match=r"no row is left .* have a text that `decontaminate` bars"
    ):
        read_rows("a", WORDNET, 0, tmp_path, barred=read_hashes(tmp_path / "list"))
