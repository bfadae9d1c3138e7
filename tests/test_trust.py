"""Folders that lie: refused by name, quickly, in little memory, and nothing outside is opened."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5.files import read_json, write_json
from st_jv5.folders.configs import is_within
from st_jv5.folders.trust import check_folder, check_stock, contents_of
from st_jv5.jina import load_model
from tests import hostile
from tests.children import logged
from tests.conftest import ROOT
from tests.hostile import ADAPTER, CASES, LORA, RETRIEVAL, SECONDS, Seen, put

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def seen(processes, saved_once, tmp_path_factory) -> dict[tuple[str, str], Seen]:
    """Every case in one process of its own: (case, by whom) -> what it saw."""
    scratch = tmp_path_factory.mktemp("hostile")
    log, results = scratch / "log", scratch / "results.json"
    shutil.copytree(saved_once, scratch / "outside")
    child = processes.Process(target=logged, args=(log, hostile.run, saved_once, scratch, results))
    child.start()
    child.join(timeout=280)
    assert child.exitcode == 0, log.read_text()[-2000:]
    found = [Seen(**each) for each in json.loads(results.read_text())]
    return {(each.name, each.by): each for each in found}


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_folder_is_refused_by_the_name_of_its_file(seen, name):
    case = CASES[name]
    for by in case.by:
        found = seen[name, by]
        kind, _, words = found.error.replace("\n", " ").partition(": ")
        assert kind in ("ValueError", "FileNotFoundError", "OSError"), (by, found.error)
        assert re.search(case.words, words), (by, words)
        assert found.seconds < SECONDS, (by, found.seconds)
        assert found.opened == [], by


def test_the_watch_over_hostile_folders_sees_what_it_is_for(seen):
    assert seen["good folder check", "control"].error == ""
    assert seen["good folder load", "control"].error == ""
    assert [path.split("/")[-1] for path in seen["outside", "control"].opened] == ["st_jv5.json"]
    assert seen["memory", "control"].error.startswith("MemoryError")


@pytest.mark.full
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not on the PATH")
def test_no_hostile_folder_has_a_file_outside_opened_by_compiled_code(saved_once, tmp_path):
    log = tmp_path / "calls.txt"
    (tmp_path / "scratch").mkdir()
    scratch = tmp_path / "scratch"
    shutil.copytree(saved_once, scratch / "outside")
    watch = ["strace", "-f", "-qq", "-y", "-e", "trace=%file", "-o", str(log), sys.executable]
    command = ["-m", "tests.hostile", saved_once, scratch, scratch / "results.json"]
    subprocess.run([*watch, *map(str, command)], cwd=ROOT, check=True, timeout=280)
    outside = re.escape(str(scratch / "outside"))
    opened = rf"= \d+<{outside}"  # by whatever name: strace tells what a descriptor stands for
    changed = rf"^\d+ +(mkdir|unlink|rename|creat|truncate)\w*\(.*{outside}.*= 0"
    lines = log.read_text(errors="replace").splitlines()
    touched = [line for line in lines if re.search(f"{opened}|{changed}", line)]
    (control,) = touched  # the one that the harness reads itself
    assert "outside/st_jv5.json" in control


# ------------------------------------------------------------------ what is odd and does no harm


@pytest.mark.parametrize(
    "changes",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "corda", "megatron_core": "evil.core"},
        {"target_modules": "(.|.|.)*!"},
        {"target_modules": "(a+)+$"},
        {"exclude_modules": "(.|.|.)*!"},
        {"layers_pattern": "(.|.|.)*!", "layers_to_transform": [0]},
        {"base_model_name_or_path": "../outside", "revision": "evil", "auto_mapping": {"a": "b"}},
    ],
    ids=str,
)
def test_keys_that_act_on_the_base_or_reach_out_have_no_effect(saved, model, texts, changes):
    expected = model.encode(texts[:4], task="retrieval")
    base = model.encode(texts[:4], task="base")
    put(ADAPTER, **changes)(Path(saved))
    began = time.perf_counter()
    loaded = SentenceTransformer(saved)
    fresh = SentenceTransformer(without_adapters(saved))
    st_jv5.adapters.load_adapter(fresh, Path(saved) / RETRIEVAL)
    assert time.perf_counter() - began < 4
    for found in (loaded, fresh):
        assert np.array_equal(found.encode(texts[:4], task="retrieval"), expected)
        assert np.array_equal(found.encode(texts[:4], task="base"), base)


def without_adapters(saved: str) -> str:
    folder = Path(shutil.copytree(saved, f"{saved} without"))
    write_json(folder / "st_jv5.json", {**read_json(folder / "st_jv5.json"), "tasks": {}})
    return str(folder)


def test_an_adapter_that_does_not_fit_leaves_the_model_as_it_was(saved, backbones, texts):
    other = st_jv5.new_student(backbones["bert"])
    before = other.encode(texts[:4], task="base")
    with pytest.raises(ValueError, match="for a layer that this backbone does not have"):
        st_jv5.adapters.load_adapter(other, Path(saved) / RETRIEVAL)
    assert st_jv5.tasks(other) == []
    assert not list(other[0].lora_layers())
    assert np.array_equal(other.encode(texts[:4], task="base"), before)


def test_files_that_nobody_reads_are_told_and_stay_behind(saved, caplog):
    folder = Path(saved)
    for name in ("model_head.pkl", "run.log", "train.py", "optimizer.pt", "rng_state_0.pth"):
        (folder / name).write_bytes(b"x")  # SetFit's, a user's, the trainer's
    (folder / "runs").mkdir()
    (folder / "runs" / "events").write_bytes(b"x")
    SentenceTransformer(saved)
    (told,) = [text for text in caplog.messages if "not part of an st_jv5 model" in text]
    assert "4 files" in told
    assert "model_head.pkl, run.log, runs/events, train.py" in told
    assert contents_of(saved).others == (
        "model_head.pkl", "optimizer.pt", "rng_state_0.pth", "run.log", "runs/events", "train.py",
    )  # fmt: skip
    assert check_folder(saved).members == contents_of(saved).members


@pytest.mark.parametrize("kind", ["bert", "mpnet", "qwen3", "eurobert"])
def test_what_we_save_ourselves_passes(backbones, tmp_path, kind):
    model = st_jv5.new_student(backbones[kind], layers=2, dtype="bfloat16")
    st_jv5.add_task(model, "retrieval", rank=2)
    model.save_pretrained(str(tmp_path / "m"))
    assert check_folder(tmp_path / "m").others == ()
    assert SentenceTransformer(str(tmp_path / "m")).dtype == torch.bfloat16


# ------------------------------------------------------------------------------- the base's weights


def replace_base(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1}, folder / WEIGHTS, {"format": "pt"})


def test_a_replaced_base_takes_no_adapter(saved, model):
    st_jv5.adapters.save_adapter(model, "retrieval", Path(saved).parent / "alone")
    replace_base(Path(saved))
    loaded = SentenceTransformer(saved)
    with pytest.raises(ValueError, match=r"names the base \w{12}, but its weights are \w{12}"):
        st_jv5.adapters.load_adapter(loaded, Path(saved).parent / "alone")


def test_a_base_loaded_in_another_precision_is_still_the_same(saved, model):
    st_jv5.adapters.save_adapter(model, "retrieval", Path(saved).parent / "alone")
    loaded = SentenceTransformer(saved, model_kwargs={"dtype": "bfloat16"})
    st_jv5.adapters.load_adapter(loaded, Path(saved).parent / "alone")


def test_a_base_of_others_that_lacks_a_tensor_makes_no_student(backbones, tmp_path):
    folder = shutil.copytree(backbones["bert"], tmp_path / "base")
    tensors = load_file(folder / WEIGHTS)
    pooler = [name for name in tensors if name.startswith("pooler.")]
    save_file({n: t for n, t in tensors.items() if n not in pooler}, folder / WEIGHTS)
    st_jv5.new_student(folder)  # a pooler that no vector goes through
    name = "encoder.layer.1.output.dense.weight"
    save_file({n: t for n, t in tensors.items() if n != name}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=rf"lack {re.escape(name)}, one of 1 tensors"):
        st_jv5.new_student(folder)
    save_file({**tensors, name: tensors[name][:, :5].clone()}, folder / WEIGHTS)
    with pytest.raises(
        ValueError, match=rf"{re.escape(name)} of shape \(48, 5\), but .* \(48, 64\)"
    ):
        st_jv5.new_student(folder)
    save_file({**tensors, name: tensors[name] * float("inf")}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=rf"{re.escape(name)} has a number that is infinite"):
        st_jv5.new_student(folder)


# -------------------------------------------------------------------------------- folders of others


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("sentence_bert_config.json", {"tokenizer_name_or_path": "/elsewhere"}, "/elsewhere"),
        ("sentence_bert_config.json", {"tokenizer_args": {"vocab_file": "/x"}}, "vocab_file"),
        ("sentence_bert_config.json", {"model_kwargs": {"device_map": "auto"}}, "device_map"),
        ("sentence_bert_config.json", {"model_args": {"weights_only": 0, "token": "x"}}, "token"),
        ("sentence_bert_config.json", {"model_args": {"attn_implementation": "a/b"}}, "a/b"),
        ("config.json", {"attn_implementation": "evil/kernel"}, "code on the Hub, 'evil/kernel'"),
        ("model.safetensors.index.json", {"weight_map": {"x": "weights.dat"}}, "weights.dat"),
        ("model.safetensors.index.json", {"weight_map": {"x": "../m.safetensors"}}, r"\.\./m"),
    ],
)
def test_what_leads_out_of_a_folder_of_others_is_refused(backbones, tmp_path, name, changes, words):
    folder = shutil.copytree(backbones["bert"], tmp_path / "base")
    put(name, **changes)(folder)
    with pytest.raises(ValueError, match=rf"{re.escape(name)}.*{words}"):
        load_model(str(folder))
    with pytest.raises(ValueError, match=rf"{re.escape(name)}.*{words}"):
        st_jv5.new_student(folder)


def test_a_config_of_an_inner_folder_that_leads_out_is_refused(backbones, tmp_path):
    """A Router has a folder for each of its transformers."""
    inner = shutil.copytree(backbones["bert"], tmp_path / "base" / "document_0_Transformer")
    put("sentence_bert_config.json", tokenizer_name_or_path="/etc")(inner)
    with pytest.raises(ValueError, match=r"document_0_Transformer.*tokenizer_name_or_path"):
        check_stock(tmp_path / "base")


def test_usual_arguments_of_a_folder_of_others_pass(backbones, tmp_path):
    folder = shutil.copytree(backbones["bert"], tmp_path / "base")
    put(
        "sentence_bert_config.json",
        max_seq_length=32,
        model_args={"torch_dtype": "float32", "attn_implementation": "sdpa"},
        tokenizer_args={"padding_side": "left", "model_max_length": 32},
        config_args={"hidden_dropout_prob": 0.0},
        trust_remote_code=False,
    )(folder)
    put("tokenizer_config.json", name_or_path="org/base", tokenizer_file="/root/.cache/t.json")(
        folder
    )
    check_stock(folder)
    st_jv5.new_student(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / "adapters" / "clustering").rename(f / "adapters" / ".x"),
            r"'\.x', which can",
        ),
        (
            lambda f: ((f / "tokenizer.json").unlink(), (f / "tokenizer.json").symlink_to("/etc")),
            r"tokenizer\.json is a link",
        ),
        (lambda f: os.truncate(f / WEIGHTS, 900), r"model\.safetensors is not a readable"),
        (put(ADAPTER, r=10**9), r"adapter_config\.json: r must be"),
        (put(ADAPTER, use_dora=True), r"adapter_config\.json: use_dora"),
        (put("config.json", num_labels=10**8), r"config\.json: num_labels is 100000000"),
        (put("config.json", attn_implementation="evil/k"), r"config\.json: .*evil/k"),
        (put("tokenizer_config.json", vocab_file="/x"), r"tokenizer_config\.json: vocab_file"),
        (lambda f: (f / "tokenizer.json").unlink(), r"has no tokenizer\.json"),
        (lambda f: (f / LORA).unlink(), r"adapters/retrieval has no adapter_model\.safetensors"),
    ],
)
def test_a_published_folder_is_not_believed_either(published, change, message):
    folder = Path(published[1])
    change(folder)
    with pytest.raises(ValueError, match=message):
        st_jv5.load_jina_v5(folder)


def test_a_published_folder_loads_where_links_are_not_granted(published, texts, monkeypatch):
    expected = st_jv5.load_jina_v5(published[1]).encode(texts[:4], task="clustering")

    def refused(*_: object) -> None:
        raise OSError(1314, "A required privilege is not held by the client")  # Windows' words

    monkeypatch.setattr(Path, "symlink_to", refused)
    found = st_jv5.load_jina_v5(published[1]).encode(texts[:4], task="clustering")
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("path", ["../a", "a/../../b", "/a", "~/a", "a\\b", "C:a", "a\0b"])
def test_paths_that_leave(path):
    assert not is_within(path)


@pytest.mark.parametrize("path", ["", "1_Pooling", "a/b", "a..b", "..."])
def test_paths_that_stay(path):
    assert is_within(path)
