"""One model, many threads: adapters come, go and blend while others encode; and forks."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5.task_table import TASKS

BLEND = {"retrieval": 0.7, "clustering": -0.2}


@pytest.fixture
def eager():
    """Threads that are switched between very often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def side_by_side(*works: Callable[[], Any], seconds: float) -> None:
    """Run functions over and over, a thread each; the first error of any ends it."""
    until, errors = time.monotonic() + seconds, []

    def loop(work: Callable[[], Any]) -> None:
        try:
            while time.monotonic() < until and not errors:
                work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=loop, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def changes(model: SentenceTransformer, name: str) -> None:
    """A task comes and goes, and so does a blend of it."""
    st_jv5.add_task(model, name, rank=2, alpha=2)
    st_jv5.blend_tasks(model, f"{name}-blend", {name: 0.5, "retrieval": 0.5})
    st_jv5.adapters.remove_task(model, name)
    st_jv5.adapters.remove_task(model, f"{name}-blend")


def test_threads_encode_exactly_while_tasks_come_go_and_blend(model, texts, eager):
    texts = texts[:12]
    tasks = [*TASKS, "base", BLEND]
    expected = [model.encode(texts, task=task) for task in tasks]
    mixed = st_jv5.encode_mixed(model, texts, tasks * 2)
    done = 0

    def encode(number: int) -> None:
        nonlocal done
        found = model.encode(texts, task=tasks[number])
        np.testing.assert_allclose(found, expected[number], atol=1e-5)
        done += 1

    def encode_mixed() -> None:
        found = st_jv5.encode_mixed(model, texts, tasks * 2)
        np.testing.assert_allclose(found, mixed, atol=1e-5)

    side_by_side(
        *(lambda number=number: encode(number) for number in range(len(tasks))),
        encode_mixed,
        lambda: changes(model, "one"),
        lambda: changes(model, "two"),
        seconds=2,
    )
    assert done > 20
    assert st_jv5.tasks(model) == list(TASKS)
    for task, vectors in zip(tasks, expected, strict=True):
        np.testing.assert_allclose(model.encode(texts, task=task), vectors, atol=1e-5)


def test_a_task_that_is_removed_meanwhile_gives_its_exact_vectors_or_says_that_it_is_gone(
    model, texts, tmp_path, eager
):
    texts = texts[:8]
    st_jv5.adapters.save_adapter(model, "clustering", tmp_path / "task")
    expected = model.encode(texts, task="clustering")
    seen = {"there": 0, "gone": 0}

    def encode() -> None:
        try:
            found = model.encode(texts, task="clustering")
        except ValueError as error:
            if "unknown task 'clustering'" not in str(error):
                raise
            seen["gone"] += 1
        else:
            np.testing.assert_allclose(found, expected, atol=1e-5)
            seen["there"] += 1

    def wait_for(kind: str) -> None:
        """Until an encoding has ended so, for a slow machine must meet both, or half a second."""
        before, until = seen[kind], time.monotonic() + 0.5
        while seen[kind] == before and time.monotonic() < until:
            time.sleep(0.001)

    def come_and_go() -> None:
        st_jv5.adapters.remove_task(model, "clustering")
        wait_for("gone")
        st_jv5.adapters.load_adapter(model, tmp_path / "task")
        wait_for("there")

    side_by_side(encode, encode, come_and_go, seconds=1)
    assert min(seen.values()) > 0


def test_adapters_are_put_and_the_base_is_read_while_others_come_and_go(
    model, texts, tmp_path, eager
):
    for name in ("one", "two"):
        st_jv5.add_task(model, name, rank=2, alpha=2)
        st_jv5.adapters.save_adapter(model, name, tmp_path / name)
        st_jv5.adapters.remove_task(model, name)
    router = model[0]
    told, weights = router.base_sha256(), router.base_state_dict().keys()

    def put_and_remove(name: str) -> None:
        st_jv5.adapters.load_adapter(model, tmp_path / name)
        st_jv5.adapters.remove_task(model, name)

    def read() -> None:
        assert router.base_sha256() == told
        assert router.base_state_dict().keys() == weights
        st_jv5.train_task(model, "retrieval")

    side_by_side(lambda: put_and_remove("one"), lambda: put_and_remove("two"), read, seconds=1)


def test_removing_a_task_waits_for_the_forward_that_has_it(model, texts):
    inside, go_on, order = threading.Event(), threading.Event(), []
    expected = model.encode(texts[:2], task="clustering")
    (block,) = [m for n, m in model[0].model.named_modules() if n == "layers.1"]

    def wait(*_: Any) -> None:
        inside.set()
        assert go_on.wait(10)

    hook = block.register_forward_pre_hook(wait)

    def encode() -> None:
        found = model.encode(texts[:2], task="clustering")
        order.append("encoded")
        np.testing.assert_array_equal(found, expected)

    def remove() -> None:
        st_jv5.adapters.remove_task(model, "clustering")
        order.append("removed")

    encoding = threading.Thread(target=encode)
    encoding.start()
    assert inside.wait(10)
    removing = threading.Thread(target=remove)
    removing.start()
    time.sleep(0.1)
    assert order == []
    with pytest.raises(ValueError, match="unknown task 'clustering'"):  # for others it is gone
        model.preprocess(["x"], task="clustering")
    hook.remove()
    go_on.set()
    encoding.join()
    removing.join()
    assert sorted(order) == ["encoded", "removed"]


# --------------------------------------------------------------------------------------- removing


def test_what_is_removed_leaves_nothing_behind(model, texts, tmp_path):
    size = sum(p.numel() for p in model.parameters())
    others = [model.encode(texts, task=task) for task in ("retrieval", "base")]
    own = sum(tensor.numel() for tensor in model[0].adapter_tensors("clustering").values())
    model.encode(texts, task="clustering")
    st_jv5.train_task(model, "clustering")
    st_jv5.adapters.remove_task(model, "clustering")
    assert sum(p.numel() for p in model.parameters()) == size - own
    assert model[0].training_task is None
    assert "clustering" not in model[0].merging
    model.save_pretrained(str(tmp_path))
    assert not (tmp_path / "adapters" / "clustering").exists()
    loaded = SentenceTransformer(str(tmp_path))
    assert st_jv5.tasks(loaded) == ["retrieval", "text-matching", "classification"]
    for task, vectors in zip(("retrieval", "base"), others, strict=True):
        np.testing.assert_array_equal(model.encode(texts, task=task), vectors)
        np.testing.assert_array_equal(loaded.encode(texts, task=task), vectors)


def test_all_tasks_can_be_removed_and_a_name_used_anew(model, texts):
    base = model.encode(texts, task="base")
    for name in TASKS:
        st_jv5.adapters.remove_task(model, name)
    np.testing.assert_array_equal(model.encode(texts), base)
    st_jv5.add_task(model, "retrieval", rank=2)
    np.testing.assert_allclose(model.encode(texts, task="retrieval"), base, atol=1e-6)
    with pytest.raises(ValueError, match="unknown task 'clustering'; this model has: retrieval"):
        st_jv5.adapters.remove_task(model, "clustering")
    for default in ("retrieval", "query", {"retrieval": 0.5}):
        model[0].default_task = default
        with pytest.raises(ValueError, match=r"'retrieval' is what the default task, .* needs"):
            st_jv5.adapters.remove_task(model, "retrieval")


def test_an_adapter_that_does_not_fit_leaves_the_model_as_it_was(model, texts):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapter = model[0].take_adapter("clustering")
    tensors = {name: tensor[:, :-1] for name, tensor in adapter.tensors.items()}
    wrong = replace(adapter, task=replace(adapter.task, name="other"), tensors=tensors)
    with pytest.raises(ValueError, match="this backbone needs"):
        st_jv5.adapters.load_adapter(model, wrong)
    assert st_jv5.tasks(model) == list(TASKS)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


# ------------------------------------------------------------------------------------------ forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_while_others_encode_does_not_hang_and_encodes_alike(model, texts):
    texts = texts[:12]
    expected = {task: model.encode(texts, task=task) for task in TASKS}
    fork = multiprocessing.get_context("fork")
    codes = []

    def child() -> None:
        torch.set_num_threads(1)
        st_jv5.add_task(model, "own", rank=2)
        st_jv5.adapters.remove_task(
            model, "classification"
        )  # though the parent's threads are at it
        for task in ("clustering", "retrieval"):
            found = model.encode(texts, task=task)
            np.testing.assert_allclose(found, expected[task], atol=1e-5)
        os._exit(7)

    def start() -> None:
        process = fork.Process(target=child)
        process.start()
        process.join(30)
        if process.exitcode is None:
            process.kill()
        codes.append(process.exitcode)

    def encode(task: str) -> None:
        np.testing.assert_allclose(model.encode(texts, task=task), expected[task], atol=1e-5)

    busy = [lambda task=task: encode(task) for task in TASKS]
    side_by_side(start, *busy, lambda: model.preprocess(texts, task="base"), seconds=2)
    assert len(codes) > 1
    assert set(codes) == {7}
