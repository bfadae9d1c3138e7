"""Folders that lie: refused by name, and nothing outside them is opened."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5.files import read_json, write_json
from st_jv5.trust import check_folder, is_within

RETRIEVAL = "adapters/retrieval"
WEIGHTS = f"{RETRIEVAL}/adapter_model.safetensors"
CONFIG = f"{RETRIEVAL}/adapter_config.json"


def edit(path: Path, **changes: object) -> None:
    write_json(path, {**read_json(path), **changes})


def module(index: int, **changes: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "modules.json"
        modules = json.loads(path.read_text())
        modules[index] |= changes
        path.write_text(json.dumps(modules))

    return change


def settings(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "st_jv5.json", **changes)


def renamed_task(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "st_jv5.json"
        tasks = read_json(path)["tasks"]
        edit(path, tasks={name: tasks["retrieval"]})

    return change


def adapter(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / CONFIG, **changes)


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def other_shape(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    key = next(key for key in tensors if "lora_A" in key)
    tensors[key] = torch.zeros(tensors[key].shape[0], 5)
    save_file(tensors, folder / WEIGHTS)


def other_base(folder: Path) -> None:
    told = {"task": "retrieval", "prompts": {"document": "d"}, "aliases": [], "base_sha256": "f00"}
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {"st_jv5": json.dumps(told)})


def untrue_header(folder: Path) -> None:
    """A header that says the tensors reach further than the file."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [9999], "data_offsets": [0, 39996]}})
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())


def pickled(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(pickle.dumps({"weights": 1}))


def link(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(folder.parent / "outside" / name)

    return change


def bomb(name: str, kind: str) -> Callable[[Path], None]:
    text = "[" * 200_000 if kind == "deep" else '{"a": 1'
    return lambda folder: (folder / name).write_text(text)


def big(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(65 << 20)  # sparse

    return change


def index_outside(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../outside/model.safetensors"}})
    )


MODULES = r"modules\.json .*outside"
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "pooling outside": (
        module(1, path="../outside/1_LastTokenPooling"),
        r"modules\.json .*outside",
    ),
    "pooling absolute": (module(1, path="/outside"), r"modules\.json .*outside"),
    "router outside": (module(0, path="../outside"), r"modules\.json .*outside"),
    "cut by a backslash": (module(2, path="..\\outside"), r"modules\.json .*outside"),
    "type that is no class": (module(2, type="os.system('x')"), r"modules\.json|os\.system"),
    "task that climbs": (renamed_task("../../outside"), r"st_jv5\.json.*task's name"),
    "task absolute": (renamed_task("/outside"), r"st_jv5\.json.*task's name"),
    "task with a dot": (renamed_task(".hidden"), r"st_jv5\.json.*task's name"),
    "tasks a list": (settings(tasks=["retrieval"]), r"st_jv5\.json: tasks cannot be"),
    "dims of text": (settings(matryoshka_dims=["8; rm"]), r"st_jv5\.json: matryoshka_dims"),
    "prompt a number": (
        settings(tasks={"retrieval": {"prompts": {"document": 7}, "aliases": []}}),
        r"st_jv5\.json: task 'retrieval'",
    ),
    "licences a text": (settings(licenses="all yours"), r"st_jv5\.json: licenses must be"),
    "weights a pickle": (pickled("pytorch_model.bin"), r"pytorch_model\.bin can hold a pickle"),
    "adapter a pickle": (
        pickled(f"{RETRIEVAL}/adapter_model.bin"),
        r"adapter_model\.bin can hold a pickle",
    ),
    "code of its own": (
        lambda f: edit(f / "config.json", auto_map={"AutoModel": "evil.Model"}),
        r"config\.json names code of its own",
    ),
    "tokenizer's code": (
        lambda f: edit(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}),
        r"tokenizer_config\.json names code of its own",
    ),
    "weights cut": (cut("model.safetensors", 5000), r"model\.safetensors is not a readable"),
    "weights empty": (cut("model.safetensors", 0), r"model\.safetensors is not a readable"),
    "header untrue": (untrue_header, r"model\.safetensors is not a readable"),
    "adapter cut": (cut(WEIGHTS, 3000), r"adapter_model\.safetensors is not a readable"),
    "adapter's shape": (other_shape, r"retrieval/adapter_model\.safetensors: .*\(4, 5\)"),
    "adapter's base": (other_base, r"retrieval/adapter_model\.safetensors was trained on another"),
    "rank a claim on memory": (adapter(r=10**9), r"adapter_config\.json: r must be .*1000000000"),
    "rank untrue": (adapter(r=64), r"adapter_config\.json has r 64, but .* beside it"),
    "pattern without end": (
        adapter(target_modules="(a+)+$"),
        r"adapter_config\.json: target_modules is a pattern that may never end",
    ),
    "not plain lora": (adapter(use_dora=True), r"adapter_config\.json: use_dora"),
    "deep settings": (bomb("st_jv5.json", "deep"), r"st_jv5\.json cannot be read as JSON"),
    "deep adapter": (bomb(CONFIG, "deep"), r"adapter_config\.json cannot be read as JSON"),
    "deep tokenizer": (bomb("tokenizer.json", "deep"), r"tokenizer\.json cannot be read as JSON"),
    "half a config": (bomb("config.json", "half"), r"config\.json cannot be read as JSON"),
    "endless settings": (big("st_jv5.json"), r"st_jv5\.json cannot be .*more than 67108864"),
    "shards outside": (index_outside, r"index\.json names the shard '\.\./outside"),
    "weights a link": (link("model.safetensors"), r"model\.safetensors is a link .*outside"),
    "tokenizer a link": (link("tokenizer.json"), r"tokenizer\.json is a link .*outside"),
}
FOUND_BY_READING = (
    "adapter's shape", "adapter's base", "rank untrue", "deep adapter", "not plain lora",
    "rank a claim on memory", "pattern without end", "licences a text",
)  # fmt: skip
"""What the check of the files leaves to loading, which reads the adapters and the settings."""

opened: list[str] = []
watched: list[str] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if watched and event in ("open", "os.listdir", "os.remove", "os.rename", "os.mkdir"):
        path = os.path.realpath(str(arguments[0]))
        if path.startswith(watched[0]):
            opened.append(f"{event} {path}")


sys.addaudithook(_note)  # for good; it looks only while a folder is watched


@pytest.fixture
def outside(saved_once, tmp_path):
    """A whole model beside the hostile one, that a path would reach; nothing may open it."""
    beside = shutil.copytree(saved_once, tmp_path / "outside")
    opened.clear()
    watched.append(os.path.realpath(beside))
    yield beside
    watched.clear()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused_by_the_name_of_its_file(saved, outside, name):
    change, message = HOSTILE[name]
    change(Path(saved))
    opened.clear()
    if message == MODULES:  # the host reads this file before any module of ours, and refuses it
        message = "Invalid model path"
    with pytest.raises((ValueError, OSError), match=message):
        SentenceTransformer(saved)
    assert opened == []


@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in FOUND_BY_READING])
def test_the_check_alone_finds_it_before_anything_is_built(saved, name):
    change, message = HOSTILE[name]
    change(Path(saved))
    with pytest.raises(ValueError, match=message):
        check_folder(saved)


def test_the_audit_would_see_a_file_outside(saved, outside):
    (outside / "st_jv5.json").read_text()
    assert opened == [f"open {os.path.realpath(outside / 'st_jv5.json')}"]


def test_an_adapter_folder_is_not_believed_either(saved, model):
    folder = Path(saved) / RETRIEVAL
    for change, message in (
        (lambda: edit(folder / "adapter_config.json", r=10**9), r"adapter_config.json: r must be"),
        (lambda: os.truncate(folder / "adapter_model.safetensors", 99), r"not a readable"),
    ):
        change()
        with pytest.raises(ValueError, match=message):
            st_jv5.put_task(model, folder)
        edit(folder / "adapter_config.json", r=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / "adapters" / "clustering").rename(f / "adapters" / ".x"),
            r"'\.x', which can",
        ),
        (link("tokenizer.json"), r"tokenizer\.json is a link"),
        (cut("model.safetensors", 900), r"model\.safetensors is not a readable"),
        (adapter(r=10**9), r"adapter_config\.json: r must be"),
        (lambda f: (f / "tokenizer.json").unlink(), r"has no tokenizer\.json"),
        (lambda f: (f / WEIGHTS).unlink(), r"adapters/retrieval has no adapter_model\.safetensors"),
    ],
)
def test_a_published_folder_is_not_believed_either(published, change, message):
    folder = Path(published[1])
    change(folder)
    with pytest.raises(ValueError, match=message):
        st_jv5.load_jina_v5(folder)


def test_a_checkpoint_of_the_trainer_may_hold_its_own_pickles(saved):
    pickled("optimizer.pt")(Path(saved))
    pickled("rng_state_0.pth")(Path(saved))
    SentenceTransformer(saved)
    with pytest.raises(ValueError, match="can hold a pickle"):
        check_folder(saved)


@pytest.mark.parametrize("path", ["../a", "a/../../b", "/a", "~/a", "a\\b", "C:a", "a\0b"])
def test_paths_that_leave(path):
    assert not is_within(path)


@pytest.mark.parametrize("path", ["", "1_Pooling", "a/b", "a..b", "..."])
def test_paths_that_stay(path):
    assert is_within(path)
