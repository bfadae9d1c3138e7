"""What a model folder may hold: checked before a file of it is believed.

A folder comes from anywhere. Nothing in it may lead outside it, run code, or be read as far as it
claims to reach rather than as far as it does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import safe_open

from st_jv5.files import read_any_json, read_json, read_json_list
from st_jv5.tasks import BASE, PROMPTS

CONFIGS = ("config.json", "tokenizer_config.json", "config_sentence_transformers.json")
"""Files that can name code of their own, or prompts."""

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5")
"""Names that readers unpickle, or may: weights are safetensors only."""

TRAINER_FILES = re.compile(r"(optimizer|scheduler|scaler|training_args|rng_state.*)\.(pt|pth|bin)")
"""Pickles of the host's trainer beside a checkpoint's model; no model is loaded from them."""

TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""A task's name is a folder, and a key of a PyTorch module."""

PATTERN_LENGTH = 200
"""Longest ``target_modules`` that is one regular expression, in characters."""

MAX_RANK = 4096
"""A rank beyond is a claim on memory, not an adapter."""

FORMAT = 1
"""Of ``st_jv5.json``."""

SETTINGS: Mapping[str, tuple[type, ...]] = {
    "tasks": (dict,),
    "default_task": (str, type(None)),
    "append_eos": (bool,),
    "matryoshka_dims": (list,),
    "theta_train": (dict, int, float, type(None)),
    "theta_serve": (int, float, type(None)),
    "base_sha256": (str,),
}
"""Key of ``st_jv5.json`` -> its types."""


def check_folder(folder: str | Path, checkpoint: bool = False) -> None:
    """Look at every file of a model folder, weights' headers only.

    Args:
        folder: A model of ours, an export or an adapter.
        checkpoint: Files of the host's trainer may stand beside the model.

    Raises:
        ValueError: Names the file and says what is wrong with it: a pickle, a link or path that
            leaves the folder, code of its own, a truncated or untrue safetensors file, JSON that is
            no JSON or has no end.

    Example:
        >>> check_folder(saved_folder)
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            check_link(path, folder)
        own = checkpoint and TRAINER_FILES.fullmatch(path.name)
        if path.suffix.lower() in PICKLES and not own:
            raise ValueError(
                f"{path} can hold a pickle, which runs code when it is read; remove it"
            )
        if path.suffix == ".safetensors" and path.is_file():
            check_safetensors(path)
    for path in sorted(folder.glob("*.json")):
        if path.name == "modules.json":
            check_modules(path)
        elif path.name == "st_jv5.json":
            check_settings(path)
        elif path.name.endswith(".safetensors.index.json"):
            _check_index(path)
        elif path.name in CONFIGS:
            check_config(path)
        else:
            read_any_json(path)


def check_link(path: Path, folder: Path) -> None:
    """The Hub's cache links a snapshot's files to its own blobs; no other link may leave."""
    target = path.resolve()
    roots = [folder.resolve()]
    if folder.parent.name == "snapshots":
        roots.append(folder.parent.parent.resolve() / "blobs")
    if not any(target.is_relative_to(root) for root in roots):
        raise ValueError(f"{path} is a link to {target}, outside the folder")


def check_modules(path: str | Path) -> None:
    """``modules.json``: a list of modules, each in a folder below this one."""
    for entry in read_json_list(path):
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise ValueError(f"{path} has a module without a path: {str(entry)[:80]}")
        if not is_within(entry["path"]):
            raise ValueError(f"{path} has a module at {entry['path']!r}, outside the folder")
        kind = entry.get("type")
        if not isinstance(kind, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", kind):
            raise ValueError(f"{path} has a module of type {kind!r}, which is no class")


def is_within(path: str) -> bool:
    """Whether a relative path stays below the folder that it starts from."""
    parts = PurePosixPath(path).parts
    return not ({"..", "~"} & set(parts) or path.startswith("/") or re.search(r"[\\:\0]", path))


def check_config(path: str | Path) -> None:
    """No config may name code of its own: with ``trust_remote_code`` it would be run."""
    config = read_json(path)
    if config.get("auto_map"):
        raise ValueError(
            f"{path} names code of its own (auto_map); a model of ours needs none. A published "
            f"jina-embeddings-v5 folder is read by st_jv5.load_jina_v5, which ignores it"
        )
    check_prompts(path, config)


def check_prompts(path: str | Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The prompts of ``config_sentence_transformers.json``: name -> text."""
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise ValueError(f"{path}: prompts must be texts, not {str(prompts)[:80]}")
    return prompts


def check_settings(path: str | Path) -> dict[str, Any]:
    """Read ``st_jv5.json``: every key there and of its type, every task named as a folder."""
    settings = read_json(path)
    if settings.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {settings.get('format')!r}; this st_jv5 reads {FORMAT}"
        )
    for key, types in SETTINGS.items():
        if key not in settings:
            raise ValueError(f"{path} lacks {key!r}")
        if not isinstance(settings[key], types) or (
            isinstance(settings[key], bool) and bool not in types
        ):
            raise ValueError(f"{path}: {key} cannot be {str(settings[key])[:80]!r}")
    if not all(type(dim) is int and dim > 0 for dim in settings["matryoshka_dims"]):
        raise ValueError(f"{path}: matryoshka_dims must be positive integers")
    thetas = settings["theta_train"]
    if not isinstance(thetas, dict):  # as it was written before each adapter had its own
        thetas = settings["theta_train"] = {} if thetas is None else {BASE: thetas}
    if not all(type(theta) in (int, float) for theta in thetas.values()):
        raise ValueError(f"{path}: theta_train must be numbers, not {str(thetas)[:80]}")
    prompts = settings.get("prompts", PROMPTS)
    if not isinstance(prompts, Mapping) or not all(isinstance(p, str) for p in prompts.values()):
        raise ValueError(f"{path}: prompts must be texts, not {str(prompts)[:80]}")
    if missing := set(PROMPTS) - set(prompts):
        raise ValueError(f"{path}: prompts lack {min(missing)!r}")
    for name, task in settings["tasks"].items():
        if not TASK_NAME.fullmatch(name):
            raise ValueError(
                f"{path}: a task's name is letters, digits, '-' and '_' (it is a folder), "
                f"not {name[:80]!r}"
            )
        task = task if isinstance(task, dict) else {}
        prompts, aliases = task.get("prompts"), task.get("aliases")
        if not isinstance(prompts, dict) or not isinstance(prompts.get("document"), str):
            raise ValueError(f"{path}: task {name!r} has no document prompt")
        if not isinstance(aliases, list) or not all(
            isinstance(text, str) for text in (*aliases, *prompts.values())
        ):
            raise ValueError(f"{path}: task {name!r} has aliases or prompts that are no texts")
    return settings


def _check_index(path: Path) -> None:
    """The index of sharded weights: plain names of files beside it."""
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(f"{path} has no weight_map")
    for shard in set(map(str, shards.values())):
        if "/" in shard or not is_within(shard):
            raise ValueError(f"{path} names the shard {shard!r}, outside the folder")
        if not (path.parent / shard).is_file():
            raise ValueError(f"{path} names the shard {shard!r}, which is not there")


def check_safetensors(path: str | Path) -> None:
    """The header of a safetensors file against the size of the file."""
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except Exception as error:  # the library's own error type has no public name for all causes
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def check_adapter_config(path: str | Path, config: Mapping[str, Any]) -> None:
    """Numbers and names of an ``adapter_config.json`` before PEFT builds layers from them."""
    rank, modules = config.get("r"), config.get("target_modules")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise ValueError(f"{path}: r must be an integer in 1..{MAX_RANK}, not {str(rank)[:40]}")
    if isinstance(modules, str):
        if len(modules) > PATTERN_LENGTH or re.search(r"[+*}]\)*[+*{]", modules):
            raise ValueError(f"{path}: target_modules is a pattern that may never end: {modules!r}")
    elif not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise ValueError(f"{path}: target_modules must be a list of names")
