"""Token-budget batches, mixed tasks, all tasks: the vectors of model.encode."""

from __future__ import annotations

import numpy as np
import pytest

import st_jv5
from st_jv5.tasks import TASKS


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_tokens", [1, 40, None])
def test_batches_by_tokens_give_the_vectors_of_encode(model, texts, side, batch_tokens):
    model.tokenizer.padding_side = side
    expected = model.encode(texts, task="retrieval", prompt_name="query", dim=16)
    found = st_jv5.encode(
        model, texts, task="retrieval", prompt_name="query", dim=16, batch_tokens=batch_tokens
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_every_row_of_a_mixed_list_gets_its_own_task(model, texts):
    tasks = [[*TASKS, "query", "base"][i % 6] for i in range(len(texts))]
    repeated = [*texts[:10], *texts[:10]]
    names = [None] * 10 + ["query"] * 10
    mixed = st_jv5.encode_mixed(model, repeated, ["retrieval"] * 20, names)
    np.testing.assert_allclose(mixed[:10], model.encode(texts[:10], task="retrieval"), atol=1e-6)
    np.testing.assert_allclose(mixed[10:], model.encode(texts[:10], task="query"), atol=1e-6)
    found = st_jv5.encode_mixed(model, texts, tasks)
    for text, task, row in zip(texts, tasks, found, strict=True):
        np.testing.assert_allclose(row, model.encode([text], task=task)[0], atol=1e-6)


def test_all_tasks_are_each_task(model, texts):
    found = st_jv5.encode_all_tasks(model, texts)
    assert list(found) == list(TASKS)
    for task, vectors in found.items():
        np.testing.assert_allclose(vectors, model.encode(texts, task=task), atol=1e-6)


def test_bad_requests_are_named(model):
    with pytest.raises(ValueError, match=r"unknown prompt 'quary'.*did you mean 'query'"):
        st_jv5.encode(model, ["x"], task="retrieval", prompt_name="quary")
    with pytest.raises(ValueError, match="batch_tokens must be positive, not 0"):
        st_jv5.encode(model, ["x"], task="retrieval", batch_tokens=0)
    with pytest.raises(ValueError, match="2 texts, 1 tasks and 2 prompt names"):
        st_jv5.encode_mixed(model, ["x", "y"], ["base"])
