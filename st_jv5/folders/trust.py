"""Check a model folder before any of its files is used.

A folder may come from anyone. Nothing in it may lead outside it, run code, or make a library take
more memory than its files need. A file that is not on a list here is not part of a model: it is an
error if a library would read it, and is logged otherwise.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_jv5.backbone import rope
from st_jv5.files import check_regular, read_json
from st_jv5.folders.configs import (
    check_backbone_settings,
    check_config,
    check_kernels,
    check_model_config,
    check_modules,
    check_plain,
    check_reach,
    check_settings,
    check_tokenizer_config,
    check_words,
    is_within,
)
from st_jv5.folders.headers import (
    check_adapter,
    check_architecture,
    check_heads,
    check_projection,
    check_rotation,
    index_map,
    shapes_of,
    weights_of,
)

logger = logging.getLogger(__name__)

MEMBERS = re.compile(
    r"(config|config_sentence_transformers|modules|sentence_bert_config|st_jv5|projection"
    r"|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|generation_config)\.json"
    r"|(model|model-\d{5}-of-\d{5}|projection)\.safetensors|model\.safetensors\.index\.json"
    r"|vocab\.txt|merges\.txt|(tokenizer|spiece|sentencepiece\.bpe)\.model|chat_template\.jinja"
    r"|README\.md|(LICENSE|NOTICE)(\.txt|\.md)?|\.gitattributes"
    r"|\d+_\w+/(config\.json|model\.safetensors)"
    r"|adapters/[\w-]+/(adapter_config\.json|adapter_model\.safetensors|README\.md)"
)
"""Files of a model folder. No other files are published."""

READ_FROM_HUB = (
    "*.json", "model*.safetensors", "projection.safetensors", "*.txt", "*.model",
    "chat_template.jinja", "adapters/*/*.safetensors", "[0-9]*_*/model.safetensors",
)  # fmt: skip
"""Files that are downloaded for an st_jv5 model: no code, no pickle, no other engine's weights."""

READ_BY_OTHERS = re.compile(
    r"adapter_config\.json|adapter_model\.safetensors"
    r"|(preprocessor|processor|video_preprocessor)_config\.json"
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

MOST_FILES = 20_000
"""Most files of a folder; a walk through more would take long."""

MOST_CONFIG_BYTES = 8 << 20
"""Most bytes of a config. The words of a tokenizer and a card may be larger."""

MOST_TEXT_BYTES = 64 << 20
"""Most bytes of a vocabulary or a card, which are read whole."""


@dataclass(frozen=True)
class Contents:
    """The files of a folder, as relative paths."""

    members: tuple[str, ...]
    """What a model folder holds."""
    others: tuple[str, ...]
    """What no library reads; it stays behind when the model is published."""


def contents_of(folder: str | Path) -> Contents:
    """List a folder's files; each must be a regular file inside the folder.

    Raises:
        ValueError: There is a link that leaves the folder, a device, a pipe, or a file that is not
            part of an st_jv5 model but that a library would read; the message names it.

    Example:
        >>> contents_of(saved_folder).others
        ()
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    members, strangers = [], []
    for path in _files_below(folder):
        name = path.relative_to(folder).as_posix()
        if MEMBERS.fullmatch(name):
            members.append(name)
        elif READ_BY_OTHERS.fullmatch(name) and not TRAINER_FILES.fullmatch(path.name):
            raise ValueError(
                f"{path} is not part of an st_jv5 model, but a library would read it in place of "
                f"the model's own files, and some kinds run code; remove it"
            )
        else:
            strangers.append(name)
    return Contents(tuple(sorted(members)), tuple(sorted(strangers)))


def warn_of_others(folder: str | Path, contents: Contents) -> None:
    """Log files that nothing reads, except those that a trainer writes."""
    strange = [n for n in contents.others if not TRAINER_FILES.fullmatch(n.rpartition("/")[-1])]
    if strange:
        shown = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
        logger.warning(
            "%s holds %d files that are not part of an st_jv5 model and are not read: %s",
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
    """Check the folder of an st_jv5 model; of its weights only the headers are read.

    Args:
        folder: An st_jv5 model, or a checkpoint that holds one.

    Returns:
        The files of the folder.

    Raises:
        FileNotFoundError: Names the file that is missing.
        ValueError: A file is wrong; the message names it and says why: a link or path that leaves
            the folder, a pipe, code, a key that makes a library read elsewhere, a number out of its
            range, a tensor that is missing or that the architecture does not have, broken or
            endless JSON.

    Example:
        >>> "model.safetensors" in check_folder(saved_folder).members
        True
    """
    folder = Path(folder)
    contents = contents_of(folder)
    for name in contents.members:
        check_size(folder / name)
    for name in ("modules.json", "st_jv5.json", "config.json", "tokenizer.json"):
        if name not in contents.members:
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
        if name in contents.members:
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
    return contents


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
            stated = pooling.get("embedding_dimension", pooling.get("word_embedding_dimension"))
            if stated != width:
                raise ValueError(f"{path} pools {stated!r} dims, but the backbone has {width}")
        if "Rotation" in entry["type"]:
            check_rotation(folder / entry["path"], width)
        if entry["type"].endswith(".Heads"):
            check_heads(folder / entry["path"], width, settings["tasks"])
    if wide := [dim for dim in settings["matryoshka_dims"] if dim > width]:
        raise ValueError(
            f"{folder}/st_jv5.json: matryoshka_dims has {wide[0]}, but the backbone has {width}"
        )
    info = folder / "projection.json"
    if info.exists() != (folder / "projection.safetensors").exists():
        raise ValueError(f"{folder} has only one of projection.json and projection.safetensors")
    if info.exists():
        stated = check_projection(info, shapes_of(folder / "projection.safetensors"))
        if stated["student_dim"] != width:
            raise ValueError(
                f"{info} has student_dim {stated['student_dim']}, but the backbone has {width}"
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


def check_stock(folder: str | Path) -> None:
    """Check a model that is not an st_jv5 one: its configs must not lead out of its folder.

    Raises:
        ValueError: A config leads out of the folder; the message names the file and the key.

    Example:
        >>> check_stock(teacher_folder)
    """
    folder = Path(folder)
    of_modules = folder.glob("*/*.json")  # a Router's transformers have folders of their own
    for path in sorted([*folder.glob("*.json"), *of_modules]):
        check_regular(path)
        if path.name == "sentence_bert_config.json":
            check_stock_settings(path)
        elif path.name == "config.json":
            check_kernels(path, read_json(path))
        elif path.name.endswith(".safetensors.index.json"):
            for shard in set(index_map(path).values()):
                if "/" in shard or not is_within(shard) or not shard.endswith(".safetensors"):
                    raise ValueError(
                        f"{path} names the shard {shard[:80]!r}, which is not the name of a file"
                    )


def check_stock_settings(path: str | Path) -> None:
    """``sentence_bert_config.json`` of others: its arguments for libraries stay in the folder."""
    settings = read_json(path)
    for key, value in settings.items():
        if key == "tokenizer_name_or_path" and value:
            raise ValueError(f"{path}: {key} reaches out of the folder: {str(value)[:80]!r}")
        if key.endswith(("_kwargs", "_args")) and isinstance(value, dict):
            check_reach(path, {k: v for k, v in value.items() if k != "trust_remote_code"})
