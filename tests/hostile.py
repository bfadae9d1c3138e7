"""Model folders that lie, in families: a change to a good folder, and the words that refuse it.

Run as a script it tries them all in one process of bounded memory and writes what it saw, beside a
whole model in ``SCRATCH_FOLDER/outside``:
``python -m tests.hostile SAVED_FOLDER SCRATCH_FOLDER RESULTS.json``.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MEGABYTES = 500
SECONDS = 2.0
RETRIEVAL = "adapters/retrieval"
ADAPTER = f"{RETRIEVAL}/adapter_config.json"
LORA = f"{RETRIEVAL}/adapter_model.safetensors"
WEIGHTS = "model.safetensors"
ELSEWHERE = "OUTSIDE"
"""Stands for the folder beside the hostile one, which nothing may open."""

Change = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One folder that lies."""

    change: Change
    words: str
    """Pattern of the error: the file, and what is wrong."""
    by: tuple[str, ...] = ("check", "load")
    """Who must refuse it: the check of the files, plain SentenceTransformer(), load_adapter."""


CHECK = ("check",)
"""sentence-transformers reads some files before any class of ours is asked."""
LOAD = ("load",)
"""What takes the weights themselves to see."""
EVERY = ("check", "load", "put")


# ---------------------------------------------------------------------------------------- changes


def put(name: str, **changes: Any) -> Change:
    """Keys of a JSON object set; ``OUTSIDE`` in a value is the folder beside."""

    def change(folder: Path) -> None:
        path = folder / name
        text = path.read_text() if path.exists() else "{}"
        outside = str(folder.parent / "outside")
        new = json.loads(json.dumps(changes).replace(ELSEWHERE, outside))
        path.write_text(json.dumps({**json.loads(text), **new}))

    return change


def without(name: str, key: str) -> Change:
    def change(folder: Path) -> None:
        told = json.loads((folder / name).read_text())
        del told[key]
        (folder / name).write_text(json.dumps(told))

    return change


def text(name: str, content: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)

    return change


def removed(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def module(index: int, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        modules[index] |= changes
        (folder / "modules.json").write_text(json.dumps(modules))

    return change


def modules(edit: Callable[[list[Any]], Any]) -> Change:
    def change(folder: Path) -> None:
        path = folder / "modules.json"
        path.write_text(json.dumps(edit(json.loads(path.read_text()))))

    return change


def task(name: str = "retrieval", **changes: Any) -> Change:
    """The retrieval task of ``st_jv5.json`` under another name or with other keys."""

    def change(folder: Path) -> None:
        told = json.loads((folder / "st_jv5.json").read_text())
        told["tasks"] = {name: told["tasks"]["retrieval"] | changes}
        (folder / "st_jv5.json").write_text(json.dumps(told))

    return change


def tensors(name: str, edit: Callable[[dict[str, Any], str], Any], part: str = "") -> Change:
    """A safetensors file with its first tensor (of that name in part) changed; metadata stays."""

    def change(folder: Path) -> None:
        from safetensors import safe_open
        from safetensors.torch import save_file

        with safe_open(folder / name, "pt") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            told = file.metadata()
        edit(found, next(key for key in sorted(found) if part in key))
        save_file(found, folder / name, told)

    return change


def metadata(name: str, **told: Any) -> Change:
    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        save_file(load_file(folder / name), folder / name, {"st_jv5": json.dumps(told)})

    return change


def _holed(value: float) -> Callable[[dict[str, Any], str], Any]:
    def edit(found: dict[str, Any], key: str) -> None:
        found[key].view(-1)[1] = value

    return edit


def _shaped(*shape: int) -> Callable[[dict[str, Any], str], Any]:
    def edit(found: dict[str, Any], key: str) -> None:
        import torch

        found[key] = torch.zeros(shape)

    return edit


def _renamed(name: str) -> Callable[[dict[str, Any], str], Any]:
    return lambda found, key: found.update({name: found.pop(key)})


def cut(name: str, size: int) -> Change:
    return lambda folder: os.truncate(folder / name, size)


def large(name: str, megabytes: int) -> Change:
    def change(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(megabytes << 20)  # sparse

    return change


def header(name: str, told: Any, size: int = 0) -> Change:
    """A safetensors file of this header and that many (sparse) bytes."""

    def change(folder: Path) -> None:
        words = json.dumps(told).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(words)) + words)
            file.truncate(8 + len(words) + size)

    return change


def pickled(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes(pickle.dumps({"weights": 1}))


def pipe(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def link(name: str, target: str = "") -> Change:
    """A link to the same file of the folder beside, or to another target."""

    def change(folder: Path) -> None:
        path = folder / name
        path.unlink(missing_ok=True)
        path.symlink_to(target or folder.parent / "outside" / name)

    return change


def linked_folder(folder: Path) -> None:
    shutil.rmtree(folder / RETRIEVAL)
    (folder / RETRIEVAL).symlink_to(folder / "adapters" / "clustering")


def bound(name: str) -> Change:
    """A socket of that name."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        before = os.getcwd()
        os.chdir(folder)  # a socket's path may only be short
        socket.socket(socket.AF_UNIX).bind(name)
        os.chdir(before)

    return change


def sharded(shard: str, content: Change | None = None, **named: str) -> Change:
    """Weights behind an index that names one shard."""

    def change(folder: Path) -> None:
        if content:
            content(folder)
        (folder / WEIGHTS).unlink()
        told = {"weight_map": named or {"x": shard}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(told))

    return change


def folder_named(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


# ------------------------------------------------------------------------------------------ cases

LONG = "x" * (20 << 20)
DEEP = "[" * 200_000
HALF = '{"a": 1'
MANY = "[" + "[]," * 7_000_000 + "[]]"

FAMILIES: dict[str, dict[str, Case]] = {}


def family(name: str, **cases: Case) -> None:
    FAMILIES[name] = cases


def listed(
    name: str, words: str, changes: dict[str, Change], by: tuple[str, ...] = ("check", "load")
) -> None:
    """A family whose cases share the file that is named."""
    FAMILIES[name] = {key: Case(change, words, by) for key, change in changes.items()}


listed(
    "modules",
    r"modules\.json",
    {
        "pooling outside": module(1, path="../outside/1_LastTokenPooling"),
        "absolute": module(1, path="/outside"),
        "router outside": module(0, path="../outside"),
        "backslash": module(2, path="..\\outside"),
        "home": module(2, path="~/outside"),
        "no class": module(2, type="os.system('x')"),
        "class of others": module(2, type="evil.Module"),
        "class of the system": module(2, type="os.system"),
        "second router": module(1, type="st_jv5.modules.adapter_router.AdapterRouter", path=""),
        "no router": modules(lambda found: found[1:]),
        "empty": modules(lambda _: []),
        "an object": modules(lambda found: found[0]),
        "no entries": modules(lambda _: ["a", "b"]),
        "path a number": module(1, path=7),
        "two thousand": modules(lambda found: [found[0], *found[1:2] * 2000]),
        "deep": text("modules.json", DEEP),
        "half": text("modules.json", HALF),
    },
    CHECK,
)
listed(
    "model config",
    r"config_sentence_transformers\.json",
    {
        "another class": put("config_sentence_transformers.json", model_type="CrossEncoder"),
        "a sparse one": put("config_sentence_transformers.json", model_type="SparseEncoder"),
        "prompts a list": put("config_sentence_transformers.json", prompts=["a"]),
        "prompt a number": put("config_sentence_transformers.json", prompts={"query": 7}),
        "prompt without end": put("config_sentence_transformers.json", prompts={"query": LONG}),
        "prompt long": put("config_sentence_transformers.json", prompts={"query": "x" * 30_000}),
        "default unknown": put("config_sentence_transformers.json", default_prompt_name="other"),
        "requirements a list": put("config_sentence_transformers.json", requirements=["a"]),
        "code": put("config_sentence_transformers.json", auto_map={"A": "evil.B"}),
    },
    CHECK,
)
SETTINGS = ("tasks", "default_task", "append_eos", "matryoshka_dims", "theta_train", "base_sha256")
WRONG = {"tasks": ["a"], "default_task": 7, "append_eos": 1, "matryoshka_dims": {}}
WRONG |= {"theta_train": "x", "theta_serve": [], "base_sha256": 7}
listed(
    "settings",
    r"st_jv5\.json",
    {
        **{f"without {key}": without("st_jv5.json", key) for key in SETTINGS},
        **{f"{key} of another type": put("st_jv5.json", **{key: WRONG[key]}) for key in WRONG},
        "format of tomorrow": put("st_jv5.json", format=2),
        "a list": text("st_jv5.json", "[]"),
        "deep": text("st_jv5.json", DEEP),
        "half": text("st_jv5.json", HALF),
        "65 MB of nothing": large("st_jv5.json", 65),
        "prompt of 20 MB": task(prompts={"document": LONG}),
        "prompt long": task(prompts={"document": "x" * 30_000}),
        "prompt a number": task(prompts={"document": 7}),
        "no document": task(prompts={"query": "q"}),
        "aliases a text": task(aliases="query"),
        "task that climbs": task("../../outside"),
        "task absolute": task("/outside"),
        "task hidden": task(".hidden"),
        "two thousand tasks": put("st_jv5.json", tasks={f"t{i}": {} for i in range(2000)}),
        "dims of text": put("st_jv5.json", matryoshka_dims=["8; rm"]),
        "dims below 1": put("st_jv5.json", matryoshka_dims=[0]),
        "dims too wide": put("st_jv5.json", matryoshka_dims=[49]),
        "theta no number": put("st_jv5.json", theta_train={"base": float("nan")}),
        "theta infinite": put("st_jv5.json", theta_serve=float("inf")),
        "theta negative": put("st_jv5.json", theta_train={"base": -1}),
        "hash short": put("st_jv5.json", base_sha256="f00"),
        "default unknown": put("st_jv5.json", default_task="other"),
        "licences a text": put("st_jv5.json", licenses="all yours"),
        "prompts lack one": put("st_jv5.json", prompts={"query": "q"}),
        "task reserved": task("base", aliases=[]),
    },
)
listed(
    "config",
    r"config\.json",
    {
        "code": put("config.json", auto_map={"AutoModel": "evil.Model"}),
        "kernel": put("config.json", attn_implementation="evil/kernel"),
        "kernel inside": put("config.json", text_config={"attn_implementation": "evil/kernel"}),
        "kernels": put("config.json", use_kernels=True),
        "quantised": put("config.json", quantization_config={"quant_method": "evil"}),
        "path": put("config.json", vocabulary="OUTSIDE/x"),
        "eps no number": put("config.json", rms_norm_eps=float("nan")),
        "eps infinite": put("config.json", rms_norm_eps=float("inf")),
        "eps 1": put("config.json", rms_norm_eps=1),
        "eps a text": put("config.json", rms_norm_eps="x"),
        "labels": put("config.json", num_labels=10**8),
        "layers": put("config.json", num_hidden_layers=10**5),
        "one layer more": put("config.json", num_hidden_layers=4),
        "one layer less": put("config.json", num_hidden_layers=2),
        "experts": put("config.json", num_experts=10**7),
        "heads": put("config.json", num_attention_heads=0),
        "heads that do not divide": put("config.json", num_attention_heads=5),
        "words": put("config.json", vocab_size=10**9),
        "width": put("config.json", hidden_size=10**6),
        "width beyond all": put("config.json", hidden_size=10**20),
        "inner width": put("config.json", intermediate_size=10**7),
        "rope a text": put("config.json", rope_parameters="x"),
        "theta negative": put("config.json", rope_theta=-1),
        "theta two": put("config.json", rope_theta=7.0),
        "act unknown": put("config.json", hidden_act="nope"),
        "type unknown": put("config.json", model_type="nope"),
        "type a number": put("config.json", model_type=7),
        "type another": put("config.json", model_type="bert", architectures=["BertModel"]),
        "a list": text("config.json", "[]"),
        "deep": text("config.json", DEEP),
        "half": text("config.json", HALF),
        "gone": removed("config.json"),
    },
)
listed(
    "weights",
    r"model\.safetensors",
    {
        "gone": removed(WEIGHTS),
        "one missing": tensors(WEIGHTS, lambda found, key: found.pop(key)),
        "all missing": header(WEIGHTS, {}),
        "one more": tensors(WEIGHTS, lambda found, key: found.update(extra=found[key].clone())),
        "another name": tensors(WEIGHTS, _renamed("other")),
        "another shape": tensors(WEIGHTS, _shaped(3, 3)),
        "cut": cut(WEIGHTS, 5000),
        "empty": cut(WEIGHTS, 0),
        "header untrue": header(
            WEIGHTS, {"x": {"dtype": "F32", "shape": [9999], "data_offsets": [0, 39996]}}
        ),
        "header no JSON": text(WEIGHTS, "\x10\0\0\0\0\0\0\0" + "x" * 16),
        "header without end": text(WEIGHTS, "\xff" * 64),
        "40 GB": header(
            WEIGHTS,
            {"x": {"dtype": "F32", "shape": [10**5, 10**5], "data_offsets": [0, 4 * 10**10]}},
            4 * 10**10,
        ),
        "a pickle in disguise": pickled(WEIGHTS),
        "index without a map": sharded("x", text("x", ""), x=7),  # type: ignore[arg-type]
        "shards outside": sharded("../outside/model.safetensors"),
        "shard a pickle": sharded("weights.dat", pickled("weights.dat")),
        "shard missing": sharded("model-00001-of-00002.safetensors"),
        "index beside": text("model.safetensors.index.json", '{"weight_map": {}}'),
    },
)
listed(
    "weights read",
    r"model\.safetensors|the weights of",
    {
        "no number": tensors(WEIGHTS, _holed(float("nan"))),
        "infinite": tensors(WEIGHTS, _holed(float("inf"))),
        "minus infinite": tensors(WEIGHTS, _holed(-float("inf"))),
    },
    LOAD,
)
listed(
    "words",
    r"tokenizer\.json",
    {
        "gone": removed("tokenizer.json"),
        "none": put("tokenizer.json", model={}),
        "model a text": put("tokenizer.json", model="x"),
        "id beyond": put("tokenizer.json", added_tokens=[{"id": 10**6, "content": "x"}]),
        "id a text": put("tokenizer.json", added_tokens=[{"id": "x", "content": "x"}]),
        "five tokens": put("tokenizer.json", model={"type": "BPE", "vocab": {}, "merges": []}),
        "deep": text("tokenizer.json", DEEP),
        "half": text("tokenizer.json", HALF),
        "a list": text("tokenizer.json", "[]"),
        "65 MB of nothing": large("tokenizer.json", 65),
        "seven million lists": text("tokenizer.json", MANY),
    },
)
listed(
    "words read",
    r"tokenizer(_config)?\.json",
    {
        "model unknown": put("tokenizer.json", pre_tokenizer={"type": "Nope"}),
        "padding a text": put("tokenizer.json", post_processor="x"),
        "tokens added": put("tokenizer_config.json", cls_token="<new>", mask_token="<other>"),
    },
    LOAD,
)
listed(
    "tokenizer config",
    r"tokenizer_config\.json",
    {
        "code": put("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}),
        "words elsewhere": put("tokenizer_config.json", tokenizer_file="OUTSIDE/tokenizer.json"),
        "vocab elsewhere": put("tokenizer_config.json", vocab_file="OUTSIDE/vocab.txt"),
        "files elsewhere": put("tokenizer_config.json", fast_tokenizer_files=["OUTSIDE/x.json"]),
        "another folder": put("tokenizer_config.json", sudachi_resource_dir="OUTSIDE"),
        "inputs": put("tokenizer_config.json", init_inputs=["OUTSIDE/tokenizer.json"]),
        "gguf": put("tokenizer_config.json", gguf_file="x.gguf"),
        "no class": put("tokenizer_config.json", tokenizer_class="../evil.T"),
        "path": put("tokenizer_config.json", mecab_kwargs={"mecab_dic": "OUTSIDE/x"}),
        "half": text("tokenizer_config.json", HALF),
        "length infinite": put("tokenizer_config.json", model_max_length=float("inf")),
    },
)
listed(
    "backbone settings",
    r"sentence_bert_config\.json",
    {
        "tokenizer elsewhere": put("sentence_bert_config.json", tokenizer_name_or_path="OUTSIDE"),
        "tokenizer on the Hub": put("sentence_bert_config.json", tokenizer_name_or_path="evil/t"),
        "words elsewhere": put(
            "sentence_bert_config.json",
            processor_kwargs={"tokenizer_file": "OUTSIDE/tokenizer.json"},
        ),
        "words elsewhere, by the old key": put(
            "sentence_bert_config.json", tokenizer_args={"tokenizer_file": "OUTSIDE/tokenizer.json"}
        ),
        "disk": put(
            "sentence_bert_config.json",
            model_kwargs={"device_map": {"": "disk"}, "offload_folder": "OUTSIDE/made"},
        ),
        "kernel": put(
            "sentence_bert_config.json", model_kwargs={"attn_implementation": "evil/kernel"}
        ),
        "pickles": put("sentence_bert_config.json", model_args={"use_safetensors": False}),
        "config": put("sentence_bert_config.json", config_kwargs={"num_labels": 10**8}),
        "unknown": put("sentence_bert_config.json", other=1),
        "another task": put("sentence_bert_config.json", transformer_task="text-generation"),
        "length": put("sentence_bert_config.json", max_seq_length=10**9),
        "length beyond its positions": put("sentence_bert_config.json", max_seq_length=129),
        "length negative": put("sentence_bert_config.json", max_seq_length=-1),
        "length a text": put("sentence_bert_config.json", max_seq_length="x"),
        "modality a text": put("sentence_bert_config.json", modality_config="x"),
        "a list": text("sentence_bert_config.json", "[]"),
    },
)
listed(
    "adapter config",
    r"adapter_config\.json",
    {
        "rank": put(ADAPTER, r=10**9),
        "rank 0": put(ADAPTER, r=0),
        "rank true": put(ADAPTER, r=True),
        "rank a text": put(ADAPTER, r="4"),
        "rank untrue": put(ADAPTER, r=64),
        "alpha no number": put(ADAPTER, lora_alpha=float("nan")),
        "alpha beyond": put(ADAPTER, lora_alpha=1e308),
        "alpha a text": put(ADAPTER, lora_alpha="x"),
        "alpha negative": put(ADAPTER, lora_alpha=-1),
        "dropout 1": put(ADAPTER, lora_dropout=1),
        "dropout a text": put(ADAPTER, lora_dropout="x"),
        "names": put(ADAPTER, target_modules=[f"a{i}" for i in range(100_000)]),
        "names that are none": put(ADAPTER, target_modules=[1]),
        "names an object": put(ADAPTER, target_modules={"a": 1}),
        "dora": put(ADAPTER, use_dora=True),
        "saved modules": put(ADAPTER, modules_to_save=["embed_tokens"]),
        "ranks": put(ADAPTER, rank_pattern={".*": 4096}),
        "alphas": put(ADAPTER, alpha_pattern={".*": 4096}),
        "replication": put(ADAPTER, layer_replication=[[0, 3], [0, 3]]),
        "tokens": put(ADAPTER, trainable_token_indices=[1]),
        "parameters": put(ADAPTER, target_parameters=["weight"]),
        "bias": put(ADAPTER, bias="all"),
        "turned": put(ADAPTER, fan_in_fan_out=True),
        "megatron": put(ADAPTER, megatron_config={"a": 1}),
        "bias of LoRA": put(ADAPTER, lora_bias=True),
        "unknown": put(ADAPTER, new_in_peft=True),
        "another kind": put(ADAPTER, peft_type="PREFIX_TUNING"),
        "gone": removed(ADAPTER),
        "a list": text(ADAPTER, "[]"),
        "deep": text(ADAPTER, DEEP),
        "half": text(ADAPTER, HALF),
    },
    EVERY,
)
listed(
    "adapter weights",
    r"adapter_model\.safetensors",
    {
        "gone": removed(LORA),
        "cut": cut(LORA, 3000),
        "empty": header(LORA, {}),
        "half a layer": tensors(LORA, lambda found, key: found.pop(key)),
        "no layer": tensors(LORA, _renamed("x")),
        "layer of nothing": tensors(LORA, _renamed("base_model.model.nope.lora_A.weight")),
        "another rank": tensors(LORA, _shaped(5, 48), "lora_A"),
        "another shape": tensors(LORA, _shaped(4, 5), "lora_A"),
        "three dims": tensors(LORA, _shaped(4, 48, 1), "lora_A"),
        "40 GB": header(
            LORA,
            {
                f"base_model.model.layers.0.mlp.down_proj.lora_{half}.weight": {
                    "dtype": "F32",
                    "shape": shape,
                    "data_offsets": [at, at + 16 * 10**9],
                }
                for half, shape, at in (("A", [4, 10**9], 0), ("B", [10**9, 4], 16 * 10**9))
            },
            32 * 10**9,
        ),
    },
    EVERY,
)
listed(
    "adapter weights read",
    r"adapter_model\.safetensors|adapters/retrieval was trained on another base",
    {
        "no number": tensors(LORA, _holed(float("nan"))),
        "infinite": tensors(LORA, _holed(float("inf"))),
        "another base": metadata(
            LORA, task="retrieval", prompts={"document": "d"}, aliases=[], base_sha256="f00"
        ),
        "header without a task": metadata(LORA, base_sha256="f00"),
        "header with a prompt of 1 MB": metadata(
            LORA, task="a", prompts={"document": "x" * 10**6}, aliases=[], base_sha256="f00"
        ),
        "header's prompts a text": metadata(
            LORA, task="a", prompts="x", aliases=[], base_sha256="f00"
        ),
    },
    ("load", "put"),
)


def projected(weight: tuple[int, int] = (12, 48), **told: Any) -> Change:
    """A projection that fits, with other words beside it."""

    def change(folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        tensors = {"weight": torch.zeros(weight), "bias": torch.zeros(weight[0])}
        save_file(tensors, folder / "projection.safetensors")
        info = {"student_dim": 48, "teacher_dim": 12, "placement": "student_up"}
        (folder / "projection.json").write_text(json.dumps(info | told))

    return change


listed(
    "projection",
    r"projection\.(json|safetensors)",
    {
        "2.4 GB": projected(student_dim=25_000, teacher_dim=25_000),
        "teacher of 10**9": projected(teacher_dim=10**9),
        "another width": projected((12, 47), student_dim=47),
        "width a text": projected(student_dim="48"),
        "width true": projected(student_dim=True),
        "placement": projected(placement="up"),
        "maps": projected(own_map_dims=list(range(1, 40))),
        "maps of text": projected(own_map_dims=["x"]),
        "maps a number": projected(own_map_dims=10**9),
        "words alone": text("projection.json", "{}"),
        "no words": lambda folder: (projected()(folder), removed("projection.json")(folder))[1],
        "note no number": projected(max_tokens=float("nan")),
    },
)
listed(
    "projection read",
    r"projection\.safetensors",
    {
        "no number": lambda folder: (
            projected()(folder),
            tensors("projection.safetensors", _holed(float("nan")))(folder),
        )[1]
    },
    LOAD,
)
PIPES = ("st_jv5.json", "tokenizer.json", "config.json", WEIGHTS, ADAPTER, LORA)
PIPES += ("sentence_bert_config.json", "tokenizer_config.json", "vocab.txt", "LICENSE")
FIRST = ("README.md", "modules.json", "config_sentence_transformers.json")
for name in PIPES:
    FAMILIES.setdefault("pipes", {})[name] = Case(
        pipe(name), f"{re.escape(name)} is not a regular file"
    )
for name in FIRST:
    FAMILIES["pipes"][name] = Case(pipe(name), f"{re.escape(name)} is not a regular file", CHECK)
for name in ("st_jv5.json", "tokenizer.json", WEIGHTS, ADAPTER):
    FAMILIES.setdefault("links", {}).update(
        {
            f"{name} outside": Case(link(name), f"{re.escape(name)} is a link to .*outside"),
            f"{name} in a loop": Case(
                link(name, Path(name).name), f"{re.escape(name)} is a link that leads nowhere"
            ),
            f"{name} without end": Case(
                link(name, "/dev/zero"), f"{re.escape(name)} is a link to /dev/zero"
            ),
        }
    )
family(
    "places",
    linked=Case(linked_folder, "retrieval is a link to a folder"),
    socket=Case(bound("vocab.txt"), r"vocab\.txt is not a regular file"),
    folder=Case(folder_named("tokenizer.json"), r"no tokenizer\.json"),
)
OTHERS = (
    "adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json", "sentence_roberta_config.json",
    "sentence_xlm-roberta_config.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "tf_model.h5", "flax_model.msgpack", "model.ckpt", "tekken.json", "tiktoken.model",
    "tokenizer.model.v3", "tokenizer.4.0.json", "chat_template.json",
    "additional_chat_templates/a.jinja", f"{RETRIEVAL}/adapter_model.bin",
    "1_TokenPooling/pytorch_model.bin",
)  # fmt: skip
listed("read by others", "not part of an st_jv5 model", {name: text(name, "{}") for name in OTHERS})

CASES = {
    f"{group}: {name}": case for group, found in FAMILIES.items() for name, case in found.items()
}


# ------------------------------------------------------------------------------------- the process


@dataclass
class Seen:
    """What one of ``check``, ``load`` and ``put`` did with a case."""

    name: str
    by: str
    error: str
    """Type and text; empty where it was not refused."""
    seconds: float
    opened: list[str]
    """Paths outside that Python opened."""


opened: list[str] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("open", "os.listdir", "os.remove", "os.rename", "os.mkdir") and watched:
        path = os.path.realpath(str(arguments[0]))
        if path.startswith(watched[0]):
            opened.append(f"{event} {path}")


watched: list[str] = []


def bound_memory() -> None:
    """Let the process have 500 MB more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + (MEGABYTES << 20)
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


def attempt(name: str, by: str, act: Callable[[], object]) -> Seen:
    """Run it under the alarm, in bounded memory."""
    opened.clear()
    signal.alarm(20)  # ends the process where nothing else does
    bound_memory()
    began = time.perf_counter()
    error = ""
    try:
        act()
    except Exception as found:
        error = f"{type(found).__name__}: {found}"
    seconds = time.perf_counter() - began
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    signal.alarm(0)
    return Seen(name, by, error[:2000], seconds, list(opened))


def tried(folder: Path, good: Any) -> dict[str, Callable[[], object]]:
    """What may meet a folder: name -> the call."""
    from sentence_transformers import SentenceTransformer

    import st_jv5
    from st_jv5.folders.trust import check_folder

    return {
        "check": lambda: check_folder(folder),
        "load": lambda: SentenceTransformer(str(folder)),
        "put": lambda: st_jv5.adapters.load_adapter(good, folder / RETRIEVAL),
    }


def run(saved: Path, scratch: Path, results: Path) -> None:
    """Try every case, each on a copy of its own beside ``scratch/outside``, which none may open.

    First what the watch itself is worth: a good folder, a file outside, and too much memory.
    """
    from sentence_transformers import SentenceTransformer

    import st_jv5  # noqa: F401 - makes its modules loadable

    good = SentenceTransformer(str(saved))
    good[0].tasks.pop("retrieval")  # so that load_adapter would make its layers anew
    sys.addaudithook(_note)
    outside = scratch / "outside"
    watched.append(os.path.realpath(outside))
    copy = shutil.copytree(saved, scratch / "good")
    acts = {f"good folder {name}": act for name, act in tried(copy, good).items()}
    del acts["good folder put"]  # the model has those layers
    acts["outside"] = lambda: (outside / "st_jv5.json").read_text()
    acts["memory"] = lambda: bytearray((MEGABYTES + 100) << 20)
    seen = [attempt(name, "control", act) for name, act in acts.items()]
    for name, case in CASES.items():
        folder = scratch / "hostile"
        shutil.copytree(saved, folder)
        case.change(folder)
        calls = tried(folder, good)
        seen += [attempt(name, by, calls[by]) for by in case.by]
        shutil.rmtree(folder)
    results.write_text(json.dumps([asdict(each) for each in seen]))


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
