"""What a model folder may hold: judged here, before a file of it is believed.

A folder comes from anywhere. Nothing in it may lead outside it, run code, or claim more memory than
its own files take. What is not on a list here is not part of a model: it is refused where a library
would read it, and named elsewhere.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from st_jv5 import rope
from st_jv5.files import check_regular, read_json, read_json_list
from st_jv5.licenses import Licenses
from st_jv5.tasks import BASE, PROMPTS

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor -> shape."""

# ---------------------------------------------------------------------------------------- the lists

MEMBERS = re.compile(
    r"(config|config_sentence_transformers|modules|sentence_bert_config|st_jv5|projection"
    r"|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|generation_config)\.json"
    r"|(model|model-\d{5}-of-\d{5}|projection)\.safetensors|model\.safetensors\.index\.json"
    r"|vocab\.txt|merges\.txt|(tokenizer|spiece|sentencepiece\.bpe)\.model|chat_template\.jinja"
    r"|README\.md|(LICENSE|NOTICE)(\.txt|\.md)?|\.gitattributes"
    r"|\d+_\w+/(config\.json|model\.safetensors)"
    r"|adapters/[\w-]+/(adapter_config\.json|adapter_model\.safetensors|README\.md)"
)
"""What a model folder holds. Nothing else of it is published."""

READ_FROM_HUB = (
    "*.json", "model*.safetensors", "projection.safetensors", "*.txt", "*.model",
    "chat_template.jinja", "adapters/*/*.safetensors", "[0-9]*_*/model.safetensors",
)  # fmt: skip
"""What is fetched of a model of ours: no code, no pickle, no other engine's weights."""

READ_BY_OTHERS = re.compile(
    r"adapter_config\.json|adapter_model\.safetensors|(preprocessor|processor|video_preprocessor)_config\.json"
    r"|sentence_\w[\w-]*_config\.json|chat_template\.json|additional_chat_templates/.*"
    r"|tekken\.json|tiktoken\.model|tokenizer\.model\..+|tokenizer\.[\w.]+\.json"
    r"|(adapters/[^/]+/|\d+_\w+/)?(adapter_model|pytorch_model|model|tf_model|flax_model)[\w.-]*"
    r"\.(bin|pt|pth|h5|msgpack|ckpt)(\.index\.json)?",
    re.IGNORECASE,
)
"""What a library would read beside them, or in their place, by its name alone."""

TRAINER_FILES = re.compile(
    r"(optimizer|scheduler|scaler|training_args|rng_state.*)\.(pt|pth|bin)|trainer_state\.json"
)
"""What sentence-transformers' trainer leaves in a checkpoint; no model is loaded from it."""

SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")

MOST_FILES = 20_000
"""In a folder; a walk through more would take long."""

MOST_CONFIG_BYTES = 8 << 20
"""Of a config. The words of a tokenizer and a card may be larger."""

MOST_TEXT_BYTES = 64 << 20
"""Of a vocabulary or a card, which are read whole."""

MOST_CHARACTERS = 20_000
"""Of a text in a config, such as a prompt."""

TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""A task's name is a folder, and a key of a PyTorch module."""

MAX_RANK = 4096
"""A rank beyond is a claim on memory, not an adapter."""

MOST_NAMES = 1000
"""Of target modules, tasks, prompts or modules."""

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

BACKBONE_SETTINGS: Mapping[str, tuple[type, ...]] = {
    "transformer_task": (str,),
    "modality_config": (dict,),
    "module_output_name": (str,),
    "max_seq_length": (int, type(None)),
    "do_lower_case": (bool,),
    "unpad_inputs": (bool, type(None)),
}
"""Key of our ``sentence_bert_config.json`` -> its types."""

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


# -------------------------------------------------------------------------------------- the folder


@dataclass(frozen=True)
class Contents:
    """What is in a folder, as paths relative to it."""

    members: tuple[str, ...]
    """What a model folder holds."""
    others: tuple[str, ...]
    """What no library reads; it stays behind when the model is published."""


def contents_of(folder: str | Path) -> Contents:
    """Sort a folder's files; each is a regular one inside it.

    Raises:
        ValueError: Names a link that leaves the folder, a device, a pipe, or a file that is not
            part of a model of ours and that a library would read.

    Example:
        >>> contents_of(saved_folder).others
        ()
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    members, others = [], []
    for path in _files_below(folder):
        name = path.relative_to(folder).as_posix()
        if MEMBERS.fullmatch(name):
            members.append(name)
        elif READ_BY_OTHERS.fullmatch(name) and not TRAINER_FILES.fullmatch(path.name):
            raise ValueError(
                f"{path} is no part of a model of ours, but a library would read it in place of "
                f"what is, some kinds by running code; remove it"
            )
        else:
            others.append(name)
    return Contents(tuple(sorted(members)), tuple(sorted(others)))


def warn_of_others(folder: str | Path, contents: Contents) -> None:
    """Tell of files beside a model that nothing reads, a trainer's own left out."""
    strange = [n for n in contents.others if not TRAINER_FILES.fullmatch(n.rpartition("/")[-1])]
    if strange:
        shown = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
        logger.warning(
            "%s holds %d files that are no part of a model of st_jv5 and are not read: %s",
            folder,
            len(strange),
            shown,
        )


def _files_below(folder: Path) -> Iterator[Path]:
    count = 0
    for place, folders, names in os.walk(folder):
        for name in sorted(folders):
            path = Path(place) / name
            if path.is_symlink():
                check_link(path, folder)
                raise ValueError(f"{path} is a link to a folder; put the folder itself there")
        for name in sorted(names):
            path = Path(place) / name
            if path.is_symlink():
                check_link(path, folder)
            check_regular(path)
            count += 1
            if count > MOST_FILES:
                raise ValueError(f"{folder} has more than {MOST_FILES} files; no model has")
            yield path


def check_folder(folder: str | Path) -> Contents:
    """Judge a model folder of ours, without reading its weights: headers only.

    Args:
        folder: A model of ours, or a checkpoint that holds one.

    Returns:
        What it holds.

    Raises:
        FileNotFoundError: Names the file that is missing.
        ValueError: Names the file and says what is wrong with it: a link or path that leaves the
            folder, a pipe, code of its own, a key that reaches out, a number out of its range, a
            tensor that the architecture lacks or does not know, JSON that is none or has no end.

    Example:
        >>> len(check_folder(saved_folder).members)
        18
    """
    folder = Path(folder)
    found = contents_of(folder)
    for name in found.members:
        check_size(folder / name)
    for name in ("modules.json", "st_jv5.json", "config.json", "tokenizer.json"):
        if name not in found.members:
            raise FileNotFoundError(f"{folder} has no {name}")
    modules = check_modules(folder / "modules.json", ours=True)
    settings = check_settings(folder / "st_jv5.json")
    told = folder / "config_sentence_transformers.json"
    if told.exists():
        check_model_config(told)
    weights = weights_of(folder)
    config = check_config(folder / "config.json", len(weights))
    rope.check_both_keys(folder / "config.json")
    for name in ("special_tokens_map.json", "added_tokens.json", "generation_config.json"):
        if name in found.members:
            check_plain(folder / name, read_json(folder / name))
    if (folder / "tokenizer_config.json").exists():
        check_tokenizer_config(folder / "tokenizer_config.json")
    if (folder / "sentence_bert_config.json").exists():
        check_backbone_settings(folder / "sentence_bert_config.json", config)
    check_architecture(folder, weights)
    check_words(folder / "tokenizer.json", config)
    width = config.get("hidden_size")
    _check_widths(folder, modules, settings, width)
    for name in settings["tasks"]:
        check_adapter(folder / "adapters" / name, weights)
    return found


def _check_widths(
    folder: Path, modules: list[dict[str, Any]], settings: Mapping[str, Any], width: Any
) -> None:
    """Pooling, dims and projection are as wide as the backbone."""
    if type(width) is not int:
        return  # this architecture names its width in its own way
    for entry in modules[1:]:
        path = folder / entry["path"] / "config.json"
        if path.exists() and "Pooling" in entry["type"]:
            pooling = read_json(path)
            check_plain(path, pooling)
            told = pooling.get("embedding_dimension", pooling.get("word_embedding_dimension"))
            if told != width:
                raise ValueError(f"{path} pools {told!r} dims, but the backbone has {width}")
    if wide := [dim for dim in settings["matryoshka_dims"] if dim > width]:
        raise ValueError(
            f"{folder}/st_jv5.json: matryoshka_dims has {wide[0]}, but the backbone has {width}"
        )
    info = folder / "projection.json"
    if info.exists() != (folder / "projection.safetensors").exists():
        raise ValueError(f"{folder} has one of projection.json and projection.safetensors alone")
    if info.exists():
        told = check_projection(info, shapes_of(folder / "projection.safetensors"))
        if told["student_dim"] != width:
            raise ValueError(
                f"{info} has student_dim {told['student_dim']}, but the backbone has {width}"
            )


def check_link(path: Path, folder: Path) -> None:
    """The Hub's cache links a snapshot's files to its own blobs; no other link may leave."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # Python 3.11 and 3.12 raise either for a loop
        raise ValueError(f"{path} is a link that leads nowhere: {error}") from error
    roots = [folder.resolve()]
    if folder.parent.name == "snapshots":
        roots.append(folder.parent.parent.resolve() / "blobs")
    if not any(target.is_relative_to(root) for root in roots):
        raise ValueError(f"{path} is a link to {target}, outside the folder")


def check_size(path: Path) -> None:
    """No config is larger than a person would write; weights may be of any size."""
    if path.suffix == ".safetensors":
        return
    config = path.suffix == ".json" and path.name not in ("tokenizer.json", "vocab.json")
    most = MOST_CONFIG_BYTES if config and "index" not in path.name else MOST_TEXT_BYTES
    if (size := check_regular(path)) > most:
        raise ValueError(f"{path} has {size} bytes; more than {most} are not read")


def is_within(path: str) -> bool:
    """Whether a relative path stays below the folder that it starts from."""
    parts = PurePosixPath(path).parts
    return not ({"..", "~"} & set(parts) or path.startswith("/") or re.search(r"[\\:\0]", path))


# ----------------------------------------------------------------------------- values of a config


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
            raise ValueError(f"{path}: {key} is {value}, which is no finite number")
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
        path: Of the file, for messages.
        config: Its content, or a part of it that goes to a library's ``from_pretrained``.
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


# --------------------------------------------------------------------------------------- the files


def check_modules(path: str | Path, ours: bool = False) -> list[dict[str, Any]]:
    """``modules.json``: a list of modules, each in a folder below this one.

    Args:
        path: Of the file.
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
            raise ValueError(f"{path} has a module of type {kind!r}, which is no class")
        if ours and not kind.startswith(("st_jv5.modules.", "sentence_transformers.")):
            raise ValueError(
                f"{path} has a module of type {kind!r}, which is neither ours nor of "
                f"sentence-transformers"
            )
        first = kind == "st_jv5.modules.adapter_router.AdapterRouter" and entry["path"] == ""
        if ours and first != (index == 0):
            raise ValueError(
                f"{path}: an AdapterRouter at path '' must be the first module and the only one "
                f"there, but module {index} is {kind} at {entry['path']!r}"
            )
    return entries


COUNTS = re.compile(r"num_\w+|n_(layers?|heads?)|\w+_layers")
"""Keys of ``config.json`` under which a library makes as many things as the number says."""

LEAST_COUNT = 1024
"""A count up to this one costs nothing, whatever the weights are."""


def check_config(path: str | Path, tensors: int) -> dict[str, Any]:
    """The backbone's ``config.json`` of a model of ours: no code, no reach, no untrue number."""
    config = read_json(path)
    if config.get("auto_map"):
        raise ValueError(
            f"{path} names code of its own (auto_map); a model of ours needs none. A published "
            f"jina-embeddings-v5 folder is read by st_jv5.load_jina_v5, which ignores it"
        )
    check_reach(path, config)
    check_numbers(path, config, tensors)
    return config


def check_numbers(path: str | Path, config: Mapping[str, Any], tensors: int) -> None:
    """The numbers of a ``config.json``: in their ranges, and no count without end.

    Args:
        path: Of the file, for messages.
        config: Its content.
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
            raise ValueError(f"{path}: {key} is {value}, which is no size of a model")
        if last.endswith(("eps", "epsilon")) and not (
            type(value) in (int, float) and 0 <= value < 1
        ):
            raise ValueError(f"{path}: {key} must lie in 0..1, not {value!r}")
        if last == "rope_theta" and not (
            value is None or (type(value) in (int, float) and value > 0)
        ):
            raise ValueError(f"{path}: {key} must be a number above 0, not {value!r}")


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


def check_model_config(path: str | Path) -> None:
    """``config_sentence_transformers.json`` of a model of ours."""
    config = read_json(path)
    if config.get("auto_map"):
        raise ValueError(f"{path} names code of its own (auto_map); a model of ours needs none")
    check_plain(path, config)
    kind = config.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise ValueError(
            f"{path}: model_type is {str(kind)[:80]!r}; a model of ours is a SentenceTransformer"
        )
    prompts = check_prompts(path, config)
    name = config.get("default_prompt_name")
    if name is not None and name not in prompts:
        raise ValueError(f"{path}: default_prompt_name {name!r} is none of {list(prompts)}")
    for key in ("requirements", "__version__"):
        _texts(path, config.get(key) or {}, key)


def check_backbone_settings(path: str | Path, config: Mapping[str, Any]) -> None:
    """``sentence_bert_config.json`` of a model of ours: what goes to the backbone's constructor."""
    settings = read_json(path)
    if unknown := sorted(settings.keys() - BACKBONE_SETTINGS.keys()):
        raise ValueError(
            f"{path}: {unknown[0]} is none of the keys that a model of ours has: "
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
        raise ValueError(f"{path} names code of its own (auto_map); a model of ours needs none")
    check_plain(path, config)
    check_reach(path, {k: v for k, v in config.items() if k != "token"}, TOKEN_TEXTS)
    kind = config.get("tokenizer_class")
    if kind is not None and not re.fullmatch(r"[A-Za-z_]\w*", str(kind)):
        raise ValueError(f"{path}: tokenizer_class {str(kind)[:80]!r} is no class")


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
        raise ValueError(f"{path} has a token whose id is no number")
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
        raise ValueError(f"{path}: base_sha256 is no hash: {settings['base_sha256'][:80]!r}")
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
        raise ValueError(f"{path}: task {name!r} has aliases or prompts that are no texts")
    if max(len(prompts), len(aliases)) > MOST_NAMES:
        raise ValueError(f"{path}: task {name!r} has more than {MOST_NAMES} prompts or aliases")


# ------------------------------------------------------------------------------------- the weights


def shapes_of(path: str | Path) -> Shapes:
    """Tensors and their shapes by the header of a safetensors file, held against its size."""
    path = Path(path)
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except Exception as error:  # the library's own error type has no public name for all causes
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


DTYPES = {"F64": "torch.float64", "F32": "torch.float32", "BF16": "torch.bfloat16"}
DTYPES |= {"F16": "torch.float16", "I64": "torch.int64", "BOOL": "torch.bool"}


def dtypes_of(folder: Path) -> set[str]:
    """PyTorch's names of the types that a model's weights are stored in."""
    found = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        found |= {DTYPES.get(kind, kind) for kind in kinds}
    return found


def weights_of(folder: Path) -> Shapes:
    """The backbone's tensors: of one file, or of the shards that an index names."""
    index = folder / "model.safetensors.index.json"
    if (whole := folder / "model.safetensors").exists():
        if index.exists():
            raise ValueError(f"{index} stands beside {whole.name}; remove the one that is old")
        return shapes_of(whole)
    if not index.exists():
        raise FileNotFoundError(f"{folder} has no model.safetensors")
    named = check_index(index)
    found = {shard: shapes_of(folder / shard) for shard in set(named.values())}
    for name, shard in named.items():
        if name not in found[shard]:
            raise ValueError(f"{index} names {name} in {shard}, which does not hold it")
    return {name: shape for shapes in found.values() for name, shape in shapes.items()}


def check_index(path: Path) -> dict[str, str]:
    """The index of sharded weights: tensor -> plain name of a safetensors file beside it."""
    named = _index_map(path)
    for shard in set(named.values()):
        if not SHARD.fullmatch(shard):
            raise ValueError(
                f"{path} names the shard {shard[:80]!r}, which is not a safetensors file beside it "
                f"(model-00001-of-00002.safetensors): it may lie outside the folder, or hold code"
            )
        if not (path.parent / shard).is_file():
            raise ValueError(f"{path} names the shard {shard!r}, which is not there")
    return named


def _index_map(path: Path) -> dict[str, str]:
    named = read_json(path).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(shard, str) for shard in named.values()):
        raise ValueError(f"{path} has no weight_map of tensors to files")
    return named


def check_architecture(folder: Path, weights: Shapes) -> None:
    """The tensors are those that the backbone's class wants: none missing, none extra.

    The class is built without memory for its weights.
    """
    path = folder / "config.json"
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        kind: Any = getattr(transformers, str((config.architectures or [None])[0]), None)
        if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
            kind = AutoModel.from_config
        with torch.device("meta"):
            backbone: torch.nn.Module = kind(config)
    except Exception as error:  # of many kinds, by the class
        raise ValueError(f"{path} describes no model: {type(error).__name__}: {error}") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    tied = set(getattr(backbone, "all_tied_weights_keys", None) or ())
    file = "model.safetensors"
    for name, shape in wanted.items():
        if name not in weights and name not in tied:
            raise ValueError(f"{folder}/{file} lacks {name} {shape}, which config.json asks for")
        if weights.get(name, shape) != shape:
            raise ValueError(
                f"{folder}/{file}: {name} is {weights[name]}, but config.json asks for {shape}"
            )
    if extra := sorted(weights.keys() - wanted.keys()):
        raise ValueError(
            f"{folder}/{file} holds {extra[0]}, which the {type(backbone).__name__} of config.json "
            f"does not have"
        )


# ------------------------------------------------------------------------ adapters and projections

LORA_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
"""PEFT's name of a tensor: the layer's path, and which half."""


def check_adapter(folder: Path, weights: Shapes | None = None) -> None:
    """An adapter's folder by itself, and its layers against the backbone's."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}")
    config, path = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    told = check_adapter_config(config, read_json(config))
    check_lora_shapes(path, shapes_of(path), told["r"], weights)


def check_lora_shapes(
    path: str | Path, shapes: Shapes, rank: int, weights: Shapes | None = None
) -> None:
    """Every layer has both halves, of the config's rank, and of the base layer's shape.

    Args:
        path: Of the adapter's weights, for messages.
        shapes: Of its tensors.
        rank: What ``adapter_config.json`` says.
        weights: Shape of each of the backbone's ``<layer>.weight``, where known.
    """
    if not shapes:
        raise ValueError(f"{path} holds no tensors")
    for name, shape in shapes.items():
        found = LORA_TENSOR.fullmatch(name)
        if not found or len(shape) != 2:
            raise ValueError(f"{path}: {name[:200]} {shape} is no half of a LoRA layer")
        layer, half = found.groups()
        own = shape[0] if half == "A" else shape[1]
        if own != rank:
            raise ValueError(f"{path}: {name} is {shape}, but adapter_config.json has r {rank}")
        other = f"base_model.model.{layer}.lora_{'B' if half == 'A' else 'A'}.weight"
        if other not in shapes:
            raise ValueError(f"{path} lacks {other}, the other half of {name}")
        base = (weights or {}).get(f"{layer}.weight")
        wide = shape[1] if half == "A" else shape[0]
        if base is not None and wide != (base[1] if half == "A" else base[0]):
            raise ValueError(f"{path}: {name} is {shape}, but the layer of the backbone is {base}")
        if weights is not None and base is None:
            raise ValueError(f"{path}: {name} is for a layer that this backbone does not have")


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


def check_projection(path: str | Path, shapes: Shapes) -> dict[str, Any]:
    """``projection.json`` against the tensors beside it, before a map of that size is made."""
    info = read_json(path)
    keys = ("student_dim", "teacher_dim", "placement")
    if missing := [key for key in keys if key not in info]:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    check_plain(path, info)
    student, teacher = info["student_dim"], info["teacher_dim"]
    for key in ("student_dim", "teacher_dim"):
        if type(info[key]) is not int or info[key] < 1:
            raise ValueError(f"{path}: {key} must be a positive integer, not {info[key]!r}")
    if info["placement"] not in ("student_up", "teacher_down"):
        raise ValueError(f"{path}: placement cannot be {str(info['placement'])[:80]!r}")
    dims = info.get("own_map_dims", [])
    if not isinstance(dims, list) or not all(type(d) is int and 1 <= d < student for d in dims):
        raise ValueError(f"{path}: own_map_dims must lie in 1..{student - 1}, not {str(dims)[:80]}")
    wanted: dict[str, tuple[int, ...]] = {}
    for prefix, width in (("", student), *((f"own.{dim}.", dim) for dim in dims)):
        up = info["placement"] == "student_up"
        wanted[f"{prefix}weight"] = (teacher, width) if up else (width, teacher)
        wanted[f"{prefix}bias"] = (teacher,) if up else (width,)
    if shapes != wanted:
        first = next(n for n in sorted({*wanted, *shapes}) if wanted.get(n) != shapes.get(n))
        raise ValueError(
            f"{path} asks for {first} {wanted.get(first)}, but projection.safetensors beside it "
            f"holds {shapes.get(first)}"
        )
    return info


# -------------------------------------------------------------------------------- folders of others


def check_stock(folder: str | Path) -> None:
    """What leads out of a base that others made; all else is as free as its library has it.

    Raises:
        ValueError: Names the file and the key.

    Example:
        >>> check_stock(teacher_folder)
    """
    folder = Path(folder)
    for path in sorted(folder.glob("*.json")):
        check_regular(path)
        if path.name == "sentence_bert_config.json":
            check_stock_settings(path)
        elif path.name == "config.json":
            check_kernels(path, read_json(path))
        elif path.name.endswith(".safetensors.index.json"):
            for shard in set(_index_map(path).values()):
                if "/" in shard or not is_within(shard) or not shard.endswith(".safetensors"):
                    raise ValueError(f"{path} names the shard {shard[:80]!r}, which is none")


def check_stock_settings(path: str | Path) -> None:
    """``sentence_bert_config.json`` of others: its arguments for libraries stay in the folder."""
    settings = read_json(path)
    for key, value in settings.items():
        if key == "tokenizer_name_or_path" and value:
            raise ValueError(f"{path}: {key} reaches out of the folder: {str(value)[:80]!r}")
        if key.endswith(("_kwargs", "_args")) and isinstance(value, dict):
            check_reach(path, {k: v for k, v in value.items() if k != "trust_remote_code"})


def check_kernels(path: str | Path, config: Any) -> None:
    """No way of attention that is a repository of code on the Hub."""
    for key, value in leaves(config):
        if "attn_impl" in key and isinstance(value, str) and "/" in value:
            raise ValueError(
                f"{path}: {key} names code on the Hub, {value[:80]!r}; pass it yourself if you "
                f"trust it: model_kwargs={{'attn_implementation': ...}}"
            )
