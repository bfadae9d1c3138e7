"""What the JSON files of a model folder may say: keys, types, ranges, and no way out of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from transformers import AutoTokenizer

from st_jv5.files import read_json, read_json_list
from st_jv5.folders.licenses import Licenses
from st_jv5.task_table import BASE, PROMPTS

MOST_CHARACTERS = 20_000
"""Most characters of a text in a config, such as a prompt."""

MOST_NAMES = 1000
"""Most target modules, tasks, prompts or modules."""


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in a JSON value that holds nothing else."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, key)
    else:
        yield key, value


def check_plain(path: str | Path, config: Any) -> None:
    """No number is infinite or none, no text longer than a person would write."""
    for key, value in leaves(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{path}: {key} is {value}, which is not a finite number")
        if isinstance(value, str) and len(value) > MOST_CHARACTERS and "template" not in key:
            raise ValueError(f"{path}: {key} has {len(value)} characters, over {MOST_CHARACTERS}")


def check_types(path: str | Path, config: Mapping[str, Any], types: Any) -> None:
    """Every key that is there is of its types; True is no number."""
    for key in types.keys() & config.keys():
        value = config[key]
        if not isinstance(value, types[key]) or (
            isinstance(value, bool) and bool not in types[key]
        ):
            raise ValueError(f"{path}: {key} cannot be {str(value)[:80]!r}")


REACHING = re.compile(
    r"(.*_)?(file|files|path|paths|dir|folder|object)|device_map|offload_\w+|cache_dir|proxies|token"
    r"|auto_map|init_inputs|state_dict|weights_only|use_safetensors|subfolder|revision|code_revision"
    r"|adapter_kwargs|quantization_config|use_kernels|kernel_config|trust_remote_code"
)
"""Keys that name another place to read from or write to, or another way to read."""

NAMES_ONLY = re.compile(r"_?name_or_path|special_tokens_map_file|id2label\..*|label2id\..*")
"""Keys that say where something came from, or what a number is called; nothing reads from there."""


def check_reach(path: str | Path, config: Any, free: str = "") -> None:
    """No key leads a library elsewhere: to a path, a repository, or code.

    Args:
        path: Path of the file, for messages.
        config: The file's content, or a part of it that goes to a library's ``from_pretrained``.
        free: Pattern of keys whose texts are words, so that a slash in them is one.
    """
    for key, value in leaves(config):
        last = key.rpartition(".")[-1]
        if value in (None, False, "") or NAMES_ONLY.fullmatch(key) or NAMES_ONLY.fullmatch(last):
            continue
        first = next((part for part in key.split(".") if REACHING.fullmatch(part)), None)
        if first is not None:
            raise ValueError(f"{path}: {key} reaches out of the folder: {str(value)[:80]!r}")
        worded = free and re.fullmatch(free, key)
        if isinstance(value, str) and not worded and re.search(r"[/\\]", value):
            raise ValueError(f"{path}: {key} may name a path or a repository: {value[:80]!r}")


def check_kernels(path: str | Path, config: Any) -> None:
    """No way of attention that is a repository of code on the Hub."""
    for key, value in leaves(config):
        if "attn_impl" in key and isinstance(value, str) and "/" in value:
            raise ValueError(
                f"{path}: {key} names code on the Hub, {value[:80]!r}; pass it yourself if you "
                f"trust it: model_kwargs={{'attn_implementation': ...}}"
            )


def is_within(path: str) -> bool:
    """Whether a relative path stays below the folder that it starts from."""
    parts = PurePosixPath(path).parts
    return not ({"..", "~"} & set(parts) or path.startswith("/") or re.search(r"[\\:\0]", path))


def check_modules(path: str | Path, ours: bool = False) -> list[dict[str, Any]]:
    """``modules.json``: a list of modules, each in a folder below this one.

    Args:
        path: Path of the file.
        ours: The first is our router, at the root, and the others are ours or of
            sentence-transformers.
    """
    entries = read_json_list(path)
    if not 1 <= len(entries) <= MOST_NAMES:
        raise ValueError(f"{path} has {len(entries)} modules")
    check_plain(path, entries)
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise ValueError(f"{path} has a module without a path: {str(entry)[:80]}")
        if not is_within(entry["path"]):
            raise ValueError(f"{path} has a module at {entry['path']!r}, outside the folder")
        kind = entry.get("type")
        if not isinstance(kind, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", kind):
            raise ValueError(f"{path} has a module of type {kind!r}, which is not a class")
        if ours and not kind.startswith(("st_jv5.modules.", "sentence_transformers.")):
            raise ValueError(
                f"{path} has a module of type {kind!r}, which is neither of st_jv5 nor of "
                f"sentence-transformers"
            )
        first = kind == "st_jv5.modules.adapter_router.AdapterRouter" and entry["path"] == ""
        if ours and first != (index == 0):
            raise ValueError(
                f"{path}: an AdapterRouter at path '' must be the first module and the only one "
                f"there, but module {index} is {kind} at {entry['path']!r}"
            )
    return entries


def check_model_config(path: str | Path) -> None:
    """``config_sentence_transformers.json`` of an st_jv5 model."""
    config = read_json(path)
    if config.get("auto_map"):
        raise ValueError(f"{path} names code of its own (auto_map); an st_jv5 model needs none")
    check_plain(path, config)
    kind = config.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise ValueError(
            f"{path}: model_type is {str(kind)[:80]!r}; an st_jv5 model is a SentenceTransformer"
        )
    prompts = check_prompts(path, config)
    name = config.get("default_prompt_name")
    if name is not None and name not in prompts:
        raise ValueError(f"{path}: default_prompt_name {name!r} is none of {list(prompts)}")
    for key in ("requirements", "__version__"):
        _texts(path, config.get(key) or {}, key)


def check_prompts(path: str | Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The prompts of ``config_sentence_transformers.json``: name -> text."""
    prompts = config.get("prompts") or {}
    return _texts(path, prompts, "prompts")


def _texts(path: str | Path, named: Any, what: str) -> dict[str, str]:
    if not isinstance(named, Mapping) or not all(isinstance(p, str) for p in named.values()):
        raise ValueError(f"{path}: {what} must be texts, not {str(named)[:80]}")
    if len(named) > MOST_NAMES:
        raise ValueError(f"{path}: {len(named)} {what} are more than {MOST_NAMES}")
    return dict(named)


COUNTS = re.compile(r"num_\w+|n_(layers?|heads?)|\w+_layers")
"""Keys of ``config.json`` under which a library makes as many things as the number says."""

LEAST_COUNT = 1024
"""A count up to this one costs nothing, whatever the weights are."""


def check_config(path: str | Path, tensors: int) -> dict[str, Any]:
    """The backbone's ``config.json`` of an st_jv5 model: no code, no reach, no untrue number."""
    config = read_json(path)
    if config.get("auto_map"):
        raise ValueError(
            f"{path} names code of its own (auto_map); an st_jv5 model needs none. A published "
            f"jina-embeddings-v5 folder is read by st_jv5.load_jina_v5, which ignores it"
        )
    check_reach(path, config)
    check_numbers(path, config, tensors)
    return config


def check_numbers(path: str | Path, config: Mapping[str, Any], tensors: int) -> None:
    """The numbers of a ``config.json``: in their ranges, and no count without end.

    Args:
        path: Path of the file, for messages.
        config: The file's content.
        tensors: How many tensors the weights have: no model has more layers.
    """
    check_plain(path, config)
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(config.get(key, {}), dict | None):
            raise ValueError(f"{path}: {key} must be an object, not {str(config[key])[:80]!r}")
    for key, value in leaves(config):
        last = key.rpartition(".")[-1]
        if type(value) is int and COUNTS.fullmatch(last):
            if not 0 <= value <= max(LEAST_COUNT, tensors):
                raise ValueError(
                    f"{path}: {key} is {value}, but the weights have {tensors} tensors"
                )
        elif type(value) is int and abs(value) > 1 << 31:
            raise ValueError(f"{path}: {key} is {value}, which is not a possible size")
        if last.endswith(("eps", "epsilon")) and not (
            type(value) in (int, float) and 0 <= value < 1
        ):
            raise ValueError(f"{path}: {key} must lie in 0..1, not {value!r}")
        if last == "rope_theta" and not (
            value is None or (type(value) in (int, float) and value > 0)
        ):
            raise ValueError(f"{path}: {key} must be a number above 0, not {value!r}")


BACKBONE_SETTINGS: Mapping[str, tuple[type, ...]] = {
    "transformer_task": (str,),
    "modality_config": (dict,),
    "module_output_name": (str,),
    "max_seq_length": (int, type(None)),
    "do_lower_case": (bool,),
    "unpad_inputs": (bool, type(None)),
}
"""Key of our ``sentence_bert_config.json`` -> its types."""


def check_backbone_settings(path: str | Path, config: Mapping[str, Any]) -> None:
    """``sentence_bert_config.json`` of an st_jv5 model: what goes to the backbone's constructor."""
    settings = read_json(path)
    if unknown := sorted(settings.keys() - BACKBONE_SETTINGS.keys()):
        raise ValueError(
            f"{path}: {unknown[0]} is not a key that an st_jv5 model has: "
            f"{', '.join(BACKBONE_SETTINGS)}"
        )
    check_plain(path, settings)
    check_types(path, settings, BACKBONE_SETTINGS)
    if settings.get("transformer_task", "feature-extraction") != "feature-extraction":
        raise ValueError(f"{path}: transformer_task cannot be {settings['transformer_task']!r}")
    longest = config.get("max_position_embeddings")
    limit = longest if type(longest) is int and longest > 0 else 1 << 24
    tokens = settings.get("max_seq_length")
    if tokens is not None and not 1 <= tokens <= limit:
        raise ValueError(f"{path}: max_seq_length must lie in 1..{limit}, not {tokens}")


TOKEN_TEXTS = (
    r"(.*_)?tokens?(_decoder)?(\..*)?|chat_template(\..*)?|response_template(\..*)?"
    r"|.*_special_tokens(\..*)?"
)
"""Keys of ``tokenizer_config.json`` whose texts are tokens or templates: ``</s>`` has a slash."""


def check_tokenizer_config(path: str | Path, config: dict[str, Any] | None = None) -> None:
    """``tokenizer_config.json``, or what of it is used: no code of its own, no file elsewhere."""
    config = read_json(path) if config is None else config
    if config.get("auto_map"):
        raise ValueError(f"{path} names code of its own (auto_map); an st_jv5 model needs none")
    check_plain(path, config)
    check_reach(path, {k: v for k, v in config.items() if k != "token"}, TOKEN_TEXTS)
    kind = config.get("tokenizer_class")
    if kind is not None and not re.fullmatch(r"[A-Za-z_]\w*", str(kind)):
        raise ValueError(f"{path}: tokenizer_class {str(kind)[:80]!r} is not a class")


def check_words(path: str | Path, config: Mapping[str, Any]) -> None:
    """``tokenizer.json``: its tokens are those that the backbone has rows for."""
    words = read_json(path)
    model, added = words.get("model"), words.get("added_tokens", [])
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict | list) or not isinstance(added, list):
        raise ValueError(f"{path} has no vocabulary")
    ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
    ids += [token.get("id") if isinstance(token, dict) else None for token in added]
    if not all(type(number) is int and number >= 0 for number in ids):
        raise ValueError(f"{path} has a token whose id is not a number")
    rows = config.get("vocab_size")
    if type(rows) is not int:
        return
    if max(ids, default=0) >= rows:
        raise ValueError(f"{path} has the token {max(ids)}, but the backbone has {rows}")
    if 2 * len(set(ids)) < rows:
        raise ValueError(
            f"{path} has {len(set(ids))} tokens, and the backbone {rows}: most words would be one"
        )


def check_tokenizer(folder: Path) -> None:
    """The tokenizer can be made at all; takes as long as loading it."""
    try:
        AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of many kinds, and without a name
        raise ValueError(
            f"{folder}/tokenizer.json and tokenizer_config.json give no tokenizer: {error}"
        ) from error


TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""A task's name is a folder, and a key of a PyTorch module."""

FORMAT = 1
"""Number of the format of ``st_jv5.json``."""

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


def check_settings(path: str | Path) -> dict[str, Any]:
    """Read ``st_jv5.json``: every key there and of its type, every task named as a folder."""
    settings = read_json(path)
    if settings.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {str(settings.get('format'))[:80]!r}; this st_jv5 reads {FORMAT}"
        )
    for key in SETTINGS:
        if key not in settings:
            raise ValueError(f"{path} lacks {key!r}")
    check_plain(path, settings)
    check_types(path, settings, SETTINGS)
    if not all(type(dim) is int and dim > 0 for dim in settings["matryoshka_dims"]):
        raise ValueError(f"{path}: matryoshka_dims must be positive integers")
    thetas = settings["theta_train"]
    if not isinstance(thetas, dict):  # as it was written before each adapter had its own
        thetas = settings["theta_train"] = {} if thetas is None else {BASE: thetas}
    if not all(type(theta) in (int, float) and theta > 0 for theta in thetas.values()):
        raise ValueError(f"{path}: theta_train must be numbers above 0, not {str(thetas)[:80]}")
    if not re.fullmatch(r"[0-9a-f]{64}", settings["base_sha256"]):
        raise ValueError(f"{path}: base_sha256 is not a hash: {settings['base_sha256'][:80]!r}")
    Licenses.read(settings.get("licenses", {}), path)
    prompts = _texts(path, settings.get("prompts", PROMPTS), "prompts")
    if missing := set(PROMPTS) - set(prompts):
        raise ValueError(f"{path}: prompts lack {min(missing)!r}")
    if len(settings["tasks"]) > MOST_NAMES:
        raise ValueError(f"{path}: {len(settings['tasks'])} tasks are more than {MOST_NAMES}")
    for name, task in settings["tasks"].items():
        _check_task(path, name, task)
    if (default := settings["default_task"]) not in (None, BASE, *settings["tasks"]):
        aliases = [alias for task in settings["tasks"].values() for alias in task["aliases"]]
        if default not in aliases:
            raise ValueError(f"{path}: default_task {default[:80]!r} is none of the tasks")
    return settings


def check_task_name(name: str) -> None:
    """An error for a name that no adapter of any model can have."""
    if not TASK_NAME.fullmatch(name):
        raise ValueError(
            f"a task's name is letters, digits, '-' and '_' (it is a folder), not {name[:80]!r}"
        )
    reserved = name == BASE or name in PROMPTS
    if reserved or hasattr(torch.nn.ModuleDict(), name):  # PEFT keeps adapters in ModuleDicts
        raise ValueError(f"{name!r} is reserved; choose another name for the task")


def _check_task(path: str | Path, name: str, task: Any) -> None:
    try:
        check_task_name(name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    task = task if isinstance(task, dict) else {}
    prompts, aliases = task.get("prompts"), task.get("aliases")
    if not isinstance(prompts, dict) or not isinstance(prompts.get("document"), str):
        raise ValueError(f"{path}: task {name!r} has no document prompt")
    if not isinstance(aliases, list) or not all(
        isinstance(text, str) for text in (*aliases, *prompts.values())
    ):
        raise ValueError(f"{path}: task {name!r} has aliases or prompts that are not texts")
    if max(len(prompts), len(aliases)) > MOST_NAMES:
        raise ValueError(f"{path}: task {name!r} has more than {MOST_NAMES} prompts or aliases")


MAX_RANK = 4096
"""A rank beyond is a claim on memory, not an adapter."""

ADAPTER_SETTINGS: Mapping[str, tuple[type, ...]] = {
    "r": (int,),
    "target_modules": (list, str),
    "lora_alpha": (int, float),
    "lora_dropout": (int, float),
    "use_rslora": (bool,),
}
"""Key of ``adapter_config.json`` that we take -> its types."""

ADAPTER_NOTES = (
    "auto_mapping", "base_model_name_or_path", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "exclude_modules", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "task_type",
)  # fmt: skip
"""Keys of ``adapter_config.json`` that we do not read, so that they can say anything.

How the weights began acts on the base (``pissa`` rewrites it); which layers they are for stands in
the names of the tensors.
"""

NEUTRAL: tuple[Any, ...] = (None, False, {}, [], "none")
"""Values under which a key of ``adapter_config.json`` says: not in use."""


def check_adapter_config(path: str | Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """An ``adapter_config.json``: what of it we take, all else not in use.

    Returns:
        The keys of :data:`ADAPTER_SETTINGS` that it has.
    """
    check_plain(path, config)
    if config.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{path}: peft_type {str(config['peft_type'])[:80]!r} is not LORA")
    for key, value in config.items():
        taken = key in ADAPTER_SETTINGS or key in ADAPTER_NOTES or key == "peft_type"
        if not taken and not any(value is each or value == each for each in NEUTRAL):
            raise ValueError(
                f"{path}: {key[:80]} is not supported, only plain LoRA is: {str(value)[:80]!r}"
            )
    check_types(path, config, ADAPTER_SETTINGS)
    rank, modules = config.get("r"), config.get("target_modules")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise ValueError(f"{path}: r must be an integer in 1..{MAX_RANK}, not {str(rank)[:40]}")
    if isinstance(modules, list) and (
        len(modules) > MOST_NAMES or not all(isinstance(name, str) for name in modules)
    ):
        raise ValueError(f"{path}: target_modules must be a list of up to {MOST_NAMES} names")
    for key, least, most in (("lora_alpha", 0, 1e6), ("lora_dropout", 0, 0.999)):
        value = config.get(key, least)
        if not least <= value <= most:
            raise ValueError(f"{path}: {key} must lie in {least}..{most:g}, not {value}")
    return {key: config[key] for key in ADAPTER_SETTINGS if key in config}
