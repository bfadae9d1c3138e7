"""Anything at all: an error in words, or the right text; never a traceback, never a wrong one.

500 examples in `make test`, 20,000 in `make test-full`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5.folders.configs import check_settings
from st_jv5.precision import codes, ranges_of
from st_jv5.task_table import BASE, TASKS
from st_jv5.texts import read_texts
from st_jv5.vectors import Corpus, VectorFolder
from tests.conftest import adapted

Sized = Callable[[Callable[..., None]], Callable[..., None]]


def often(quick: int, full: int) -> Sized:
    """A test of so many examples in `make test`, and of as many more in `make test-full`."""

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        return pytest.mark.parametrize(
            "examples", [pytest.param(quick), pytest.param(full, marks=pytest.mark.full)]
        )(pytest.mark.timeout(3600)(test))

    return mark


def run(examples: int, check: Callable[..., None], **given_: st.SearchStrategy[Any]) -> None:
    """Hold a claim against so many examples."""
    calm = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    how = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=calm)
    how(given(**given_)(check))()


texts = st.text(st.characters(codec="utf-8"), max_size=40)  # every character but half ones
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
ids = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=8, max_size=8),
    st.lists(words, min_size=8, max_size=8),
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(leaves, containers, max_leaves=6)


# ---------------------------------------------------------------------------------------- corpora


def write(path: Path, own: list[Any], told: list[str]) -> None:
    """Rows in the format of the file's name."""
    rows = [{"id": one, "text": text} for one, text in zip(own, told, strict=True)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["id", "text"], *([r["id"], r["text"]] for r in rows)])
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv", ".txt"])
@often(quick=40, full=2000)
def test_a_corpus_is_read_as_it_was_written(tmp_path, suffix, examples):
    path = tmp_path / f"a{suffix}"

    def check(own: list[Any], told: list[str], block: int) -> None:
        own = own[: len(told)]
        expected: list[Any] = list(own)
        if suffix == ".txt":
            told = [text.replace("\r", "").replace("\n", "") for text in told]
            path.write_text("".join(text + "\n" for text in told), encoding="utf-8")
            expected = list(range(len(told)))
            told[0] = told[0].removeprefix("\ufeff")  # a mark of the byte order
        else:
            write(path, own, told)
        if suffix == ".csv":
            expected = [str(one) for one in own]
        blocks = list(Corpus(path, "text").blocks(block))
        assert [text for one in blocks for text in one.texts] == told
        assert [one for each in blocks for one in each.ids] == expected

    rows = st.lists(texts, min_size=1, max_size=8)
    run(examples, check, own=ids, told=rows, block=st.integers(1, 5))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv", ".txt"])
@often(quick=30, full=1000)
def test_a_file_of_anything_is_read_or_refused_in_words(tmp_path, suffix, examples):
    path = tmp_path / f"a{suffix}"
    (tmp_path / "whole.parquet").unlink(missing_ok=True)
    write(tmp_path / "whole.parquet", [1, 2], ["x", "y"])
    whole = (tmp_path / "whole.parquet").read_bytes()

    def check(raw: bytes, rows: list[Any], place: int) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        changed = bytearray(whole)
        changed[place % len(whole)] ^= 1 + place % 255
        for content in (raw, lines, json.dumps(rows).encode(), bytes(changed)):
            path.write_bytes(content)
            for read in (lambda: Corpus(path, "text").summary(), lambda: read_texts(path)):
                try:
                    read()
                except ValueError as error:
                    assert str(path) in str(error)  # noqa: PT017 (some are read)

    row = st.dictionaries(st.sampled_from(["id", "text", "n"]), anything, max_size=3)
    more = {"raw": st.binary(max_size=200), "place": st.integers(0, 10**6)}
    run(examples, check, rows=st.lists(row | anything, max_size=4), **more)


@often(quick=40, full=2000)
def test_vectors_on_disk_are_what_was_written(tmp_path, examples):
    number = 0

    def check(own: list[Any], seed: int, precision: str, files: str, dim: int) -> None:
        nonlocal number
        number += 1
        told = {"model": "m", "revision": None, "model_hash": "h", "task": None, "prompt": ""}
        told |= {"dim": dim, "precision": precision, "dtype": "float32", "corpus": {}}
        told |= {"corpus_sha256": "", "rows": 8, "shard_rows": 8, "files": files}
        folder = VectorFolder.create(tmp_path / str(number), told)
        rows = np.random.default_rng(seed).standard_normal((8, dim)).astype(np.float32)
        ranges = ranges_of(rows) if precision == "int8" else None
        kept = codes(rows, precision, ranges)
        if ranges is not None:
            folder.write_ranges(ranges)
        folder.write(0, own, kept)
        again = VectorFolder(folder.path)
        found, vectors = again.load(0)
        assert found == own
        assert np.array_equal(vectors, kept)
        assert vectors.dtype == kept.dtype
        assert again.faults() == []

    run(
        examples,
        check,
        own=ids,
        seed=st.integers(0, 99),
        precision=st.sampled_from(["float32", "float16", "int8", "binary"]),
        files=st.sampled_from(["parquet", "npy"]),
        dim=st.integers(1, 20),
    )


# ---------------------------------------------------------------------------------------- configs


@often(quick=60, full=3000)
def test_settings_of_a_model_and_manifests_of_anything_are_refused_in_words(
    saved_once, tmp_path, examples
):
    whole = json.loads((saved_once / "st_jv5.json").read_text())
    manifest = {"format": 1, "model": "m", "revision": None, "model_hash": "h", "task": None}
    manifest |= {"prompt": "", "dim": 4, "precision": "float32", "dtype": "float32", "corpus": {}}
    manifest |= {"corpus_sha256": "", "rows": 8, "shard_rows": 8, "files": "npy"}
    (tmp_path / "v").mkdir()

    def check(change: dict[str, Any], which: int) -> None:
        for path, told, read in (
            (tmp_path / "st_jv5.json", whole, check_settings),
            (tmp_path / "v" / "manifest.json", manifest, lambda p: VectorFolder(p.parent).faults()),
        ):
            keys = list(told)
            named = {
                keys[(which + n) % len(keys)]: value for n, value in enumerate(change.values())
            }
            path.write_text(json.dumps({**told, **change, **named}))
            try:
                read(path)
            except ValueError as error:
                assert str(path.name) in str(error) or "precision" in str(error)  # noqa: PT017

    some = st.dictionaries(st.text(max_size=6), anything, max_size=3)
    run(examples, check, change=some, which=st.integers(0, 30))


# --------------------------------------------------------------------------------- texts, prompts


@pytest.fixture(scope="module")
def one(backbones) -> SentenceTransformer:
    return adapted(backbones["eurobert"])


@often(quick=40, full=4000)
def test_every_way_to_encode_puts_the_same_prompt_before_the_same_text(one, examples):
    names = [*TASKS, BASE, "query", "document"]
    stock = dict(one.prompts)

    def check(text: str, own: dict[str, str], task: str, name: str | None, default: str) -> None:
        one.prompts = stock | own
        one.default_prompt_name = default
        if one.prompts["query"] == one.prompts["document"]:  # which is meant, no text could tell
            one.prompts["query"] += "?"
        found = one.encode([text, "x"], task=task, prompt_name=name)
        for other in (
            st_jv5.encode(one, [text, "x"], task=task, prompt_name=name),
            st_jv5.encode_mixed(one, [text, "x"], [task] * 2, prompt_names=[name] * 2),
        ):
            np.testing.assert_allclose(found, other, atol=1e-5)
        side = task if task in ("query", "document") else None
        meant = name or default
        if side and meant == default:
            meant = side
        adapter, prompt = "retrieval" if side else task, one.prompts[meant]
        whole = one.encode([prompt + text, prompt + "x"], task=adapter, prompt="")
        np.testing.assert_allclose(found, whole, atol=1e-5)

    prompts = st.dictionaries(st.sampled_from(["query", "document"]), st.text(
        st.characters(codec="utf-8"), min_size=1, max_size=8), max_size=2)  # fmt: skip
    try:
        run(
            examples,
            check,
            text=texts,
            own=prompts,
            task=st.sampled_from(names),
            name=st.sampled_from([None, "query", "document"]),
            default=st.sampled_from(["query", "document"]),
        )
    finally:
        one.prompts, one.default_prompt_name = stock, "document"


@often(quick=30, full=2000)
def test_lists_of_anything_are_encoded_or_refused_in_words(one, examples):
    def check(given_: list[Any], task: Any, dim: Any) -> None:
        for encode in (one.encode, lambda texts, **how: st_jv5.encode(one, texts, **how)):
            try:
                found = encode(list(given_), task=task, dim=dim)
            except ValueError as error:
                assert 0 < len(str(error)) < 700  # noqa: PT017 (some are encoded)
            else:
                assert len(found) == len(given_)
                assert np.isfinite(found).all()

    surrogates = st.text(st.characters(), max_size=6)
    some = st.lists(surrogates | anything, max_size=3)
    tasks = st.sampled_from([*TASKS, "base", "query", "nope", None, 3, ["base"], {"query": 0.5}])
    dims = st.sampled_from([None, None, 1, 8, 48, 49, 0, -1, "8", 8.0, True])
    run(examples, check, given_=some, task=tasks | anything, dim=dims)
