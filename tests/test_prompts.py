"""One truth for prompts: the model's, for every way to encode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5.vectors import Corpus, encode_corpus, search

OWN = {"query": "Q: ", "document": "D: "}


def by_constructor(folder: str, tmp_path: Any) -> SentenceTransformer:
    return SentenceTransformer(folder, prompts=OWN)


def by_assignment(folder: str, tmp_path: Any) -> SentenceTransformer:
    model = SentenceTransformer(folder)
    model.prompts |= OWN
    return model


def saved_again(folder: str, tmp_path: Any) -> SentenceTransformer:
    by_assignment(folder, tmp_path).save_pretrained(str(tmp_path / "again"))
    return SentenceTransformer(str(tmp_path / "again"))


WAYS = [by_constructor, by_assignment, saved_again]


def behind(model: SentenceTransformer, prompt: str, texts: list[str], task: str) -> np.ndarray:
    return model.encode([prompt + text for text in texts], task=task, prompt="")


@pytest.mark.parametrize("way", WAYS)
def test_a_users_prompts_go_before_the_texts_of_every_way_to_encode(saved, texts, tmp_path, way):
    texts, model = texts[:6], way(saved, tmp_path)
    queries, documents = (behind(model, OWN[n], texts, "retrieval") for n in ("query", "document"))
    six = len(texts)
    for expected, found in (
        (queries, model.encode_query(texts)),
        (queries, model.encode(texts, task="query")),
        (queries, model.encode(texts, task="retrieval", prompt_name="query")),
        (queries, st_jv5.encode(model, texts, task="query")),
        (queries, st_jv5.encode(model, texts, task="retrieval", prompt_name="query")),
        (queries, st_jv5.encode_mixed(model, texts, ["query"] * six)),
        (
            queries,
            st_jv5.encode_mixed(model, texts, ["retrieval"] * six, prompt_names=["query"] * six),
        ),
        (queries, st_jv5.merge_task(model, "retrieval").encode_query(texts)),
        (documents, model.encode_document(texts)),
        (documents, model.encode(texts, task="document")),
        (documents, model.encode(texts, task="retrieval")),
        (documents, st_jv5.encode(model, texts, task="document")),
        (documents, st_jv5.encode_mixed(model, texts, ["document"] * six)),
        (documents, st_jv5.encode_all_tasks(model, texts)["retrieval"]),
        (documents, st_jv5.merge_task(model, "retrieval").encode_document(texts)),
        (documents, st_jv5.merge_task(model, "retrieval").encode(texts)),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    for task in ("clustering", "base"):
        expected = behind(model, OWN["document"], texts, task)
        np.testing.assert_allclose(model.encode(texts, task=task), expected, atol=1e-5)


@pytest.mark.parametrize("default", ["query", "document"])
def test_a_task_that_names_its_side_beats_the_default_prompt(saved, texts, default):
    texts, model = texts[:4], SentenceTransformer(saved, default_prompt_name=default)
    for side in ("query", "document"):
        expected = behind(model, model.prompts[side], texts, "retrieval")
        for found in (
            model.encode(texts, task=side),
            st_jv5.encode(model, texts, task=side),
            st_jv5.encode_mixed(model, texts, [side] * 4),
            getattr(model, f"encode_{side}")(texts),
        ):
            np.testing.assert_allclose(found, expected, atol=1e-5)
    expected = behind(model, model.prompts[default], texts, "retrieval")
    np.testing.assert_allclose(model.encode(texts, task="retrieval"), expected, atol=1e-5)


def test_a_search_asks_with_the_models_own_prompt(saved, tmp_path, texts):
    by_constructor(saved, tmp_path).save_pretrained(str(tmp_path / "own"))
    (tmp_path / "a.txt").write_text("\n".join(text.replace("\n", " ") for text in texts[:9]))
    folder = encode_corpus(
        str(tmp_path / "own"), Corpus(tmp_path / "a.txt"), tmp_path / "vectors", task="retrieval"
    )
    assert folder.manifest["prompt"] == "D: "
    model = SentenceTransformer(str(tmp_path / "own"))
    query = behind(model, "Q: ", ["a war"], "retrieval")[0]
    lines = (tmp_path / "a.txt").read_text().splitlines()
    scores = behind(model, "D: ", lines, "retrieval") @ query
    (hits,) = search(folder, ["a war"], k=9)
    assert [hit.row for hit in hits] == np.argsort(-scores).tolist()
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1], atol=1e-5)
