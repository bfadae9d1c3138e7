"""Chunks by tokens: every row once, none wider than it must be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from st_jv5.batching import Layout, plan_chunks, row_chunks, take_rows
from st_jv5.modules import adapter_router


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=60),
    budget=st.integers(1, 200),
    most_rows=st.none() | st.integers(1, 9),
)
def test_every_row_stands_in_one_chunk_within_the_budget(lengths, budget, most_rows):
    tensor = torch.tensor(lengths)
    chunks = row_chunks(tensor, budget, most_rows)
    assert sorted(row for chunk in chunks for row in chunk.tolist()) == list(range(len(lengths)))
    padded = [len(chunk) * max(1, int(tensor[chunk].max())) for chunk in chunks]
    assert all(tokens <= budget or len(c) == 1 for tokens, c in zip(padded, chunks, strict=True))
    assert all(most_rows is None or len(chunk) <= most_rows for chunk in chunks)
    assert padded == sorted(padded, reverse=True)
    assert all(chunk.tolist() == sorted(chunk.tolist()) for chunk in chunks)


def test_rows_of_several_columns_are_joined_as_wide_as_the_longest(student, texts):
    short, long = texts[:3], [text for text in texts if len(text) > 200][:3]
    columns = [student.preprocess(column, prompt="") for column in (short, long)]
    chunks, places = plan_chunks(columns, Layout.of(columns), 10**6)
    (chunk,) = chunks
    found = take_rows(columns, chunk)
    expected = student.preprocess([*short, *long], prompt="")
    mask = expected["attention_mask"]
    assert torch.equal(found["attention_mask"], mask)
    assert torch.equal(found["input_ids"] * mask, expected["input_ids"] * mask)
    assert (chunk.padding, places.tolist()) == ("right", list(range(6)))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("budget", [1, 60, 400])
def test_chunks_hold_every_row_and_say_how_they_are_padded(student, texts, side, budget):
    student.tokenizer.padding_side = side
    column = student.preprocess(texts[:20], prompt="")
    chunks, places = plan_chunks([column], Layout.of([column]), budget)
    ids = []
    for chunk in chunks:
        part = take_rows([column], chunk)
        mask = part["attention_mask"]
        ids += [
            row[real.bool()].tolist() for row, real in zip(part["input_ids"], mask, strict=True)
        ]
        assert bool(mask.all()) == (chunk.padding == "none")
        assert chunk.padding in ("none", side)
        assert mask.sum(dim=1).max() == mask.shape[1]
    expected = [
        row[real.bool()].tolist()
        for row, real in zip(column["input_ids"], column["attention_mask"], strict=True)
    ]
    assert [ids[place] for place in places.tolist()] == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_tokenised_in_blocks_are_those_of_one_call(student, texts, monkeypatch, side):
    student.tokenizer.padding_side = side
    whole = student.preprocess(texts, prompt="Document: ")
    monkeypatch.setattr(adapter_router, "TOKENISED_TOGETHER", 5)
    found = student.preprocess(texts, prompt="Document: ")
    assert found.keys() == whole.keys()
    for key, value in whole.items():
        same = torch.equal(found[key], value) if torch.is_tensor(value) else found[key] == value
        assert same, key
