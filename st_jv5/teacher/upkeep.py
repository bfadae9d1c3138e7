"""Work on whole stores: check them against the teacher, join stores, leave a space out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cosine_similarity
from tqdm.auto import tqdm

from st_jv5.files import write_text
from st_jv5.teacher.shard import Array, shard_of
from st_jv5.teacher.shard_writer import check_width
from st_jv5.teacher.sources import as_teacher
from st_jv5.teacher.store import Space, TeacherStore

BLOCK_ROWS = 16384
"""Rows copied at a time."""
MARK = "unfinished-copy"
"""File in a store that is being written, which names its sources: only the same copy continues."""


@dataclass(frozen=True)
class Check:
    """What :func:`verify` found."""

    texts: list[str]
    """The texts whose vectors were computed again."""
    cosines: Array
    """Cosine of each text's stored vector and its new one, float32 ``(n,)``."""
    missing: int
    """Number of texts that have no vector in the space."""


def verify(
    store: TeacherStore, teacher: Any, texts: Sequence[str], *, sample: int = 100, seed: int = 0
) -> Check:
    """Compute the vectors of a random sample again and compare.

    Args:
        store: A space of a store.
        teacher: As :func:`~st_jv5.teacher.fill` takes it.
        texts: Texts to draw from; those without a vector in the space are counted.
        sample: How many vectors to compute.
        seed: Seed of the draw.

    Example:
        >>> store = TeacherStore.open(folder, create=True).space("minilm", dim=384)
        >>> _ = fill(store, teacher, ["a cat", "a dog"])
        >>> bool((verify(store, teacher, ["a cat", "a dog"]).cosines > 0.9999).all())
        True
    """
    if sample < 1:
        raise ValueError(f"sample must be positive, not {sample}")
    unique = list(dict.fromkeys(texts))
    rows = store.rows(unique, missing_ok=True)
    there = np.flatnonzero(rows >= 0)
    if not len(there):
        raise ValueError(f"none of the {len(unique)} texts is in {store.path}: nothing to check")
    draw = np.random.default_rng(seed)
    chosen = np.sort(draw.choice(there, min(sample, len(there)), replace=False))
    again = [unique[index] for index in chosen]
    assert store.key is not None
    source = as_teacher(teacher)
    check_width(store, source)
    found = torch.as_tensor(np.asarray(source.embed(again, store.key))).float()
    cosines = cosine_similarity(store.gather(rows[chosen]).float(), found).numpy()
    return Check(again, cosines, missing=len(unique) - len(there))


def merge(
    stores: Sequence[TeacherStore], out: str | Path, *, shards: int | None = None
) -> TeacherStore:
    """Write a new store with the spaces of several; of two vectors of a text the first is kept.

    If it is stopped, the same call continues. Row numbers of the old stores are not valid in the
    new one.

    Args:
        stores: Stores, not spaces.
        out: Folder of the new store; it must differ from the old stores' folders.
        shards: Shards of each new space; None: as many as in the first store that has the space.

    Example:
        >>> _ = TeacherStore.open(folder, create=True).space("minilm", dim=384)
        >>> [space.teacher for space in merge([TeacherStore.open(folder)], out_folder).spaces()]
        ['minilm']
    """
    target = _new_store([store.folder for store in stores], out)
    for store in stores:
        for space in store.spaces():
            _copy(store, space, target, shards)
    (target.folder / MARK).unlink()
    return target


def prune(store: TeacherStore, spaces: Sequence[str], out: str | Path) -> TeacherStore:
    """Write a new store without some spaces; the old one stays as it is.

    Args:
        store: A store, not a space.
        spaces: Ids of the spaces to leave out, as ``st-jv5 teacher ls`` shows them.
        out: Folder of the new store.

    Example:
        >>> old = TeacherStore.open(folder, create=True)
        >>> gone = old.space("old", dim=4).key.id
        >>> _ = old.space("new", dim=4)
        >>> [space.teacher for space in prune(old, [gone], out_folder).spaces()]
        ['new']
    """
    for name in spaces:
        space_by_id(store, name)
    target = _new_store([store.folder], out)
    for space in store.spaces():
        if space.id not in spaces:
            _copy(store, space, target, None)
    (target.folder / MARK).unlink()
    return target


def space_by_id(store: TeacherStore, name: str | None = None) -> TeacherStore:
    """One space of a store: by its id or the beginning of it; None is the only one."""
    known = store.spaces()
    matching = [space for space in known if name is None or space.id.startswith(name)]
    if len(matching) != 1:
        asked = "several spaces" if name is None else f"{len(matching)} spaces named {name!r}"
        raise ValueError(
            f"{store.folder} has {asked if known else 'no space'}; it has: "
            f"{', '.join(space.id for space in known) or 'none'}"
        )
    return TeacherStore(store.folder, matching[0])


def _new_store(old: Sequence[Path], out: str | Path) -> TeacherStore:
    out = Path(out)
    if out.resolve() in [folder.resolve() for folder in old]:
        raise ValueError(f"{out} is one of the old stores; choose another folder")
    mark, sources = out / MARK, "\n".join(sorted(str(f.resolve()) for f in old)) + "\n"
    if out.exists() and any(out.iterdir()):
        if not mark.exists() or mark.read_text(encoding="utf-8") != sources:
            raise ValueError(f"{out} is not empty; choose another folder")
    else:
        write_text(mark, sources)
    return TeacherStore.open(out, create=True)


def _copy(store: TeacherStore, space: Space, target: TeacherStore, shards: int | None) -> None:
    view = TeacherStore(store.folder, space)
    known = {other.id for other in target.spaces()}
    new = target.space(**asdict(space), shards=None if space.id in known else shards or view.shards)
    with tqdm(total=len(view), desc=space.id, unit="vector", disable=None) as bar:
        for hashes, rows in view.hashes():
            numbers = shard_of(hashes, new.shards)
            for number in np.unique(numbers):
                places = np.flatnonzero(numbers == number)
                with new.writing(int(number)) as shard:
                    left = places[shard.find(hashes[places]) < 0]
                    for begin in range(0, len(left), BLOCK_ROWS):
                        block = left[begin : begin + BLOCK_ROWS]
                        shard.append(hashes[block], view.gather(rows[block]))
                        shard.refresh()
                bar.update(len(places))
