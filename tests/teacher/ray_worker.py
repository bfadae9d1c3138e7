"""Fills through Ray, in a process of its own: a worker that dies, and a teacher that breaks."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np

from st_jv5.teacher import TeacherStore, fill

FOLDER = Path(sys.argv[-1])  # when it is run; a test that imports its names has no folder
NAMES = [f"text {i}" for i in range(400)]


def dies_once(texts: list[str]) -> np.ndarray:
    """Kills its worker in the middle of a shard, the first time."""
    mark = FOLDER / "died"
    if len(texts) > 1 and not mark.exists() and any(FOLDER.glob("*/*.json")):
        mark.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return np.array([[len(text), sum(map(ord, text)), 1.0] for text in texts])


def breaks(texts: list[str]) -> np.ndarray:
    """Has no vector for one text."""
    return np.array([[1.0, np.nan if text == "text 77" else 1.0, 1.0] for text in texts])


def main() -> None:
    """Both, on one small cluster."""
    store = TeacherStore.open(FOLDER, create=True)
    names = store.space("names", dim=3, shards=4)
    print("filled", fill(names, dies_once, NAMES, engine="ray", workers=2, chunk_texts=10))
    print("died", (FOLDER / "died").exists())
    try:
        broken = store.space("broken", dim=3, shards=4)
        fill(broken, breaks, NAMES, engine="ray", workers=2, chunk_texts=10)
    except ValueError as error:
        print("refused", error)


if __name__ == "__main__":
    main()
