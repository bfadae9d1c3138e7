"""What Windows lacks, hidden from our code: encode, search, train, a jina folder."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5 import doctor
from st_jv5.teacher import TeacherStore
from st_jv5.vectors import Corpus, encode_corpus, search, verify
from tests.conftest import arguments

ABSENT = {
    *("chown", "fchmod", "fork", "forkpty", "geteuid", "getgid", "getloadavg", "getuid", "killpg"),
    *("mkfifo", "nice", "register_at_fork", "sched_getaffinity", "setsid", "statvfs", "sysconf"),
}
OURS = ("st_jv5", "training", "eval")


def ours(depth: int) -> bool:
    return str(sys._getframe(depth + 1).f_globals.get("__name__", "")).startswith(OURS)


class AsOnWindows:
    """The module ``os`` as our code would find it there."""

    def __getattr__(self, name: str) -> Any:
        if name in ABSENT:
            raise AttributeError(f"module 'os' has no attribute {name!r}")
        return getattr(os, name)

    @staticmethod
    def fsync(number: int) -> None:
        """Flushes no file that is open for reading alone."""
        import fcntl

        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        os.fsync(number)


@pytest.fixture
def windows(monkeypatch):
    for name, module in list(sys.modules.items()):
        if name.startswith(OURS) and getattr(module, "os", None) is os:
            monkeypatch.setattr(module, "os", AsOnWindows())
    link = Path.symlink_to

    def without_privilege(self: Path, *args: Any, **kwargs: Any) -> None:
        if ours(1):
            raise OSError("A required privilege is not held by the client")
        link(self, *args, **kwargs)

    monkeypatch.setattr(Path, "symlink_to", without_privilege)


def test_a_corpus_is_encoded_verified_and_searched(windows, saved, tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    for files in ("parquet", "npy"):
        corpus, out = Corpus(tmp_path / "a.txt"), tmp_path / files
        encode_corpus(saved, corpus, out, task="clustering", files=files, precision="int8")
        assert verify(out).rows == 3
        assert len(search(out, ["one"], k=3)[0]) == 3


def test_a_teachers_vectors_are_kept_and_an_adapter_is_trained_and_saved(
    windows, student, pairs, tmp_path
):
    store = TeacherStore.open(tmp_path / "store", create=True).space("t", dim=4)
    store.add(["a", "b"], np.eye(4)[:2])
    store.add(["c"], np.eye(4)[2:3])
    assert len(store) == 3
    st_jv5.add_task(student, "retrieval", rank=2)
    pairs = pairs.remove_columns(["label"])
    loss = st_jv5.losses.InfoNCELoss(student)
    args = arguments(tmp_path / "run", max_steps=2, save_steps=1)
    st_jv5.AdapterTrainer(student, args, tasks="retrieval", train_dataset=pairs, loss=loss).train()
    student.save_pretrained(str(tmp_path / "model"))
    assert SentenceTransformer(str(tmp_path / "model")).encode(["x"], task="query").shape == (1, 48)
    assert st_jv5.trainer.last_checkpoint(str(tmp_path / "run"))


def test_a_published_folder_is_loaded_without_links(windows, published):
    assert st_jv5.load_jina_v5(published[1]).encode(["x"], task="query").shape == (1, 48)
    assert doctor.usable_cores() >= 1


def test_the_fixture_would_notice(windows, tmp_path):
    from st_jv5 import files

    with (tmp_path / "a").open("wb") as file:
        file.write(b"x")
    with (tmp_path / "a").open("rb") as file, pytest.raises(OSError, match="Bad file descriptor"):
        files.os.fsync(file.fileno())
    with pytest.raises(AttributeError, match="no attribute 'fork'"):
        files.os.fork()
