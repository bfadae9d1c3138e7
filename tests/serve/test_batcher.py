"""The queue before the model: what shares a batch, who waits for whom, and what is dropped."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError, Future
from types import SimpleNamespace

import numpy as np
import pytest

import st_jv5
from st_jv5.encoding import NotFiniteError, encode_mixed
from st_jv5.modules.merging import MergedAdapters
from st_jv5.serve import Limits
from st_jv5.serve.batcher import (
    MOST_RETRY_SECONDS,
    Batcher,
    OverloadedError,
    Piece,
    StoppingError,
    chosen,
)
from st_jv5.task_table import TASKS
from tests.serve.conftest import ATOL


def waiting(*told: tuple[str, int]) -> list[Piece]:
    """Texts that wait, of adapters and tokens."""
    jobs = [SimpleNamespace(adapter=adapter, tokens=[tokens]) for adapter, tokens in told]
    return [Piece(0, number, job, 0) for number, job in enumerate(jobs)]


def numbers(pieces: list[Piece]) -> list[int]:
    return sorted(piece.number for piece in pieces)


def test_a_batch_has_the_first_text_and_those_of_its_adapter_that_are_about_as_long():
    pieces = waiting(("a", 200), ("a", 10), ("b", 200), ("a", 170), ("a", 250), ("a", 270))
    assert numbers(chosen(pieces, 2048, 0.25)) == [0, 3]  # 250 would pad 170 by more than a quarter
    assert numbers(chosen(pieces[:1] + pieces[4:], 2048, 0.25)) == [0, 4]
    assert numbers(chosen(pieces, 2048, 1 / 16)) == [0]


def test_a_few_tokens_of_padding_are_always_spare():
    pieces = waiting(("a", 100), ("a", 84), ("a", 83))
    assert numbers(chosen(pieces, 2048, 0.0)) == [0, 1]


def test_a_batch_keeps_to_its_padded_tokens_but_takes_a_text_that_is_longer():
    assert numbers(chosen(waiting(*[("a", 100)] * 9), 500, 0.25)) == [0, 1, 2, 3, 4]
    assert numbers(chosen(waiting(("a", 900), ("a", 900)), 500, 0.25)) == [0]


def test_few_short_texts_of_other_adapters_share_a_batch():
    pieces = waiting(("a", 20), ("b", 30), ("c", 65), ("b", 30), ("b", 30), ("d", 9))
    assert numbers(chosen(pieces, 2048, 0.25)) == [0, 1, 3, 5]  # at most 64 tokens of each
    assert numbers(chosen(pieces, 80, 0.25)) == [0, 1]
    assert numbers(chosen(waiting(("a", 65), ("b", 5)), 2048, 0.25)) == [0]


@pytest.fixture
def batcher(served):
    made = []

    def make(**limits) -> Batcher:
        batcher = Batcher(served, Limits(**limits), batch_tokens=256)
        batcher.start()
        made.append(batcher)
        return batcher

    yield make
    for batcher in made:
        batcher.close()


def submit(batcher: Batcher, texts: list[str], task="base", tokens: int = 10) -> Future:
    return batcher.submit(texts, [tokens] * len(texts), task)


def blocked(batcher: Batcher, held) -> Future:
    """The model is at work, so that what comes now waits."""
    first = submit(batcher, ["first"])
    held.began.acquire()
    return first


def test_a_short_text_is_merged_while_the_queue_runs_and_no_longer(served, batcher, monkeypatch):
    seen, real = [], MergedAdapters.weights

    def spy(self, *args):
        seen.append(real(self, *args))
        return seen[-1]

    monkeypatch.setattr(served[0].merging, "least_tokens", 32)
    queue = batcher()  # which merges each adapter for a text of 64 tokens
    monkeypatch.setattr(MergedAdapters, "weights", spy)
    found = submit(queue, ["a cat"], "retrieval").result(30)
    assert seen[-1] is not None
    queue.close()
    alone = served.encode(["a cat"], task="retrieval")
    assert seen[-1] is None
    np.testing.assert_allclose(found, alone, atol=ATOL)


def test_texts_of_all_tasks_wait_in_one_queue_and_share_a_batch(batcher, served, held, texts):
    queue = batcher()
    blocked(queue, held)
    tasks = [*TASKS, "base", "query", {"retrieval": 0.5}]
    futures = [submit(queue, [texts[i]], task) for i, task in enumerate(tasks)]
    held.release()
    for i, (future, task) in enumerate(zip(futures, tasks, strict=True)):
        wanted = st_jv5.encode(served, [texts[i]], task)
        np.testing.assert_allclose(future.result(30), wanted, atol=ATOL)
    assert [len(batch) for batch in held.batches] == [1, len(tasks)]


def test_a_short_request_overtakes_the_rest_of_a_long_one(batcher, held):
    queue = batcher()
    blocked(queue, held)
    long = submit(queue, [f"long {i}" for i in range(300)])
    held.go.release()
    held.began.acquire()  # a batch of the long one runs
    short = submit(queue, ["short"])
    held.release()
    short.result(30)
    long.result(30)
    (place,) = [i for i, batch in enumerate(held.batches) if "short" in batch]
    assert place == 2
    assert len(held.batches) > 10


def test_two_long_requests_advance_alike(batcher, held):
    queue = batcher()
    blocked(queue, held)
    both = [submit(queue, [f"{name} {i}" for i in range(100)]) for name in ("one", "two")]
    held.release()
    for future in both:
        future.result(30)
    for batch in held.batches[1:-1]:
        share = sum(text.startswith("one") for text in batch) / len(batch)
        assert 0.3 < share < 0.7


def test_a_cancelled_request_leaves_the_queue_at_once(batcher, held):
    queue = batcher()
    blocked(queue, held)
    gone, kept = submit(queue, ["gone"] * 5), submit(queue, ["kept"])
    assert (queue.waiting_texts, queue.waiting_tokens) == (6, 60)
    gone.cancel()
    assert (queue.waiting_texts, queue.waiting_tokens) == (1, 10)
    held.release()
    kept.result(30)
    assert held.batches == [["first"], ["kept"]]
    with pytest.raises(CancelledError):
        gone.result()


def test_more_than_may_wait_is_refused_and_told_when_to_come_again(batcher, held):
    queue = batcher(max_tokens=100, max_waiting_tokens=100)
    blocked(queue, held)
    submit(queue, ["a"] * 9)
    submit(queue, ["b"])
    with pytest.raises(OverloadedError) as refused:
        submit(queue, ["c"])
    assert 1 <= refused.value.retry_seconds <= MOST_RETRY_SECONDS
    held.release()


def test_a_request_waits_for_others_no_longer_than_told(batcher):
    queue = batcher(batch_wait_ms=700.0)
    begin = time.monotonic()
    submit(queue, ["a"]).result(30)
    assert time.monotonic() - begin >= 0.7
    begin = time.monotonic()
    submit(queue, ["a"] * 4, tokens=64).result(30)  # a full batch waits for nobody
    assert time.monotonic() - begin < 0.7


def test_closing_finishes_what_was_taken_and_takes_no_more(batcher, held):
    queue = batcher()
    futures = [blocked(queue, held), *(submit(queue, [f"{i}"] * 40) for i in range(3))]
    held.release()
    queue.close()
    assert all(future.done() and len(future.result()) for future in futures)
    with pytest.raises(StoppingError):
        submit(queue, ["late"])


def test_a_request_that_fails_spares_those_of_its_batch(batcher, held, monkeypatch):
    def sometimes(model, texts, tasks, *args, **kwargs):
        if "broken" in texts:
            raise NotFiniteError(texts.index("broken"), "broken")
        return encode_mixed(model, texts, tasks, *args, **kwargs)

    queue = batcher()
    monkeypatch.setattr("st_jv5.serve.batcher.encode_mixed", sometimes)
    blocked(queue, held)
    good, bad, other = (submit(queue, t) for t in (["a"], ["b", "broken"], ["c"]))
    held.release()
    assert len(good.result(30)) == len(other.result(30)) == 1
    with pytest.raises(NotFiniteError) as failed:
        bad.result(30)
    assert failed.value.index == 1
    assert queue.waiting_tokens == 0
    assert len(submit(queue, ["d"]).result(30)) == 1  # the thread goes on


def test_an_unknown_task_is_refused_before_it_waits(batcher):
    with pytest.raises(ValueError, match="unknown task 'retreival'"):
        submit(batcher(), ["a"], "retreival")
