"""A store's bytes: as they were written, or named."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from st_jv5.cli import main
from st_jv5.teacher import TeacherStore
from st_jv5.teacher.shard import hash_texts

NAMES = [f"text {i}" for i in range(200)]


@pytest.fixture
def store(tmp_path) -> TeacherStore:
    """200 texts in 16 shards, added in two goes."""
    store = TeacherStore.open(tmp_path / "store", create=True).space("big", dim=6)
    vectors = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    store.add(NAMES[:70], vectors[:70])
    store.add(NAMES, vectors)
    return store


def anew(store: TeacherStore) -> TeacherStore:
    return TeacherStore(store.folder, store.key)


def zero(begin: int, end: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[begin:end] = bytes(len(raw[begin:end]))
        path.write_bytes(raw)

    return change


def flip(bit: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)

    return change


def swap_rows(width: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        raw = path.read_bytes()
        path.write_bytes(raw[width : 2 * width] + raw[:width] + raw[2 * width :])

    return change


def cut(count: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[:-count])


def tell(**change: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return write


def tell_space(**change: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        told = json.loads(path.read_text())
        path.write_text(json.dumps(told | {"space": told["space"] | change}))

    return write


DAMAGE = [
    ("003.vectors", zero(12, 24), "003.vectors is damaged"),
    ("003.vectors", zero(0, 10**6), "003.vectors is damaged"),
    ("003.vectors", flip(5), "003.vectors is damaged"),
    ("003.vectors", flip(12 * 8 + 7), "003.vectors is damaged"),
    ("003.vectors", swap_rows(12), "003.vectors is damaged"),
    ("003.vectors", cut(1), "003.vectors has .* bytes, but its .* rows need"),
    ("003.vectors", Path.unlink, "003.vectors has 0 bytes"),
    ("003.hashes", flip(100), "003.hashes is damaged"),
    ("003.hashes", swap_rows(16), "003.hashes is damaged"),
    ("003.hashes", flip(0), "003.json is of a space of .* shards|003.hashes is damaged"),
    ("003.hashes", cut(16), "003.hashes has .* bytes"),
    ("003.json", tell(rows=3), "damaged"),
    ("003.json", tell(rows=-1), "003.json: rows must be a number >= 0, not -1"),
    ("003.json", tell(rows=True), "003.json: rows must be a number >= 0, not True"),
    ("003.json", tell(rows=10**9), "003.vectors has .* bytes"),
    ("003.json", tell(sums={}), "003.json: sums must be of vectors and hashes"),
    ("003.json", tell(sums={"vectors": "0", "hashes": "0"}), "damaged"),
    ("003.json", tell(shards=8), "003.json is of a space of 8 shards, not 16"),
    ("003.json", lambda path: path.write_text("{"), "003.json cannot be read as JSON"),
    ("space.json", tell(shards=8), "tells of 8 shards, but 008.json is there"),
    ("space.json", tell(shards=17), r"\d{3}.json is of a space of 16 shards, not 17"),
    ("space.json", tell(shards=True), r"shards must lie in 1..1000, not True"),
    ("space.json", tell(shards=10**9), r"shards must lie in 1..1000, not 1000000000"),
    ("space.json", tell(shards="16"), r"shards must lie in 1..1000, not '16'"),
    ("space.json", tell_space(dim=3), "describes big-.*, but its folder is big-"),
    ("space.json", tell_space(prompt="p: "), "describes big-.*, but its folder is big-"),
    ("space.json", tell_space(dtype="int8"), "no vectors can be 6 int8 wide"),
    ("space.json", tell_space(dim="6"), "dim must be int, not '6'"),
]


@pytest.mark.parametrize(("name", "damage", "said"), DAMAGE, ids=lambda one: str(one)[:20])
def test_verify_finds_every_damage_and_names_the_file(store, name, damage, said):
    damage(store.path / name)
    with pytest.raises(SystemExit, match=said) as ended:
        main(["teacher", "verify", str(store.folder)])
    assert str(store.path) in str(ended.value.code)


def test_a_whole_store_is_told_to_be_so(store, capsys):
    main(["teacher", "verify", str(store.folder)])
    assert capsys.readouterr().out == f"{store.key.id}: 200 vectors, as they were written\n"
    assert anew(store).faults() == []


def strip(store: TeacherStore) -> None:
    """As a store of before was written."""
    for path in store.path.glob("[0-9]*.json"):
        path.write_text(json.dumps({"rows": json.loads(path.read_text())["rows"]}))


def test_a_store_of_before_is_read_appended_to_and_then_has_checksums(store, capsys):
    strip(store)
    old = anew(store)
    assert len(old) == old.unsummed() == 200
    main(["teacher", "verify", str(store.folder)])
    assert "200 of them in shards without checksums" in capsys.readouterr().out
    more = [f"more {i}" for i in range(200)]
    old.add(more, torch.randn(200, 6))
    assert anew(store).unsummed() == 0
    assert anew(store).faults() == []
    flip(9)(store.path / "003.vectors")
    (fault,) = anew(store).faults()
    assert "003.vectors is damaged" in fault


@pytest.mark.parametrize("shards", [17, 32])
def test_another_number_of_shards_is_seen_in_a_store_of_before_too(store, shards):
    strip(store)
    tell(shards=shards)(store.path / "space.json")
    with pytest.raises(ValueError, match=f"of another number of shards, not {shards}"):
        anew(store).rows(NAMES)


def test_the_sum_of_a_shard_does_not_depend_on_how_it_was_added(tmp_path):
    vectors = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    told = []
    for step in (1, 7, 200):
        space = TeacherStore.open(tmp_path / str(step), create=True).space("big", dim=6, shards=1)
        for begin in range(0, 200, step):
            space.add(NAMES[begin : begin + step], vectors[begin : begin + step])
        told.append((space.path / "000.json").read_text())
    assert len(set(told)) == 1
    assert re.search(r'"vectors": "[0-9a-f]{16}"', told[0])


def test_a_store_is_verified_as_fast_as_a_disk_reads(tmp_path):
    space = TeacherStore.open(tmp_path, create=True).space("big", dim=768, shards=1)
    count = 20_000
    hashes = hash_texts([str(i) for i in range(count)])
    space.add_hashed(hashes, torch.from_numpy(np.ones((count, 768), np.float16)))
    begin = time.process_time()
    assert space.faults() == []
    assert count * 768 * 2 / (time.process_time() - begin) > 300e6  # bytes a second
