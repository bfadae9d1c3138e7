"""The published jina-embeddings-v5-text folders, read without their remote code."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers import AutoConfig, PreTrainedConfig

from st_jv5.files import check_regular, read_json, write_json
from st_jv5.folders.adapter_file import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    read_adapter,
)
from st_jv5.folders.configs import TASK_NAME, check_numbers, check_prompts, check_tokenizer_config
from st_jv5.folders.headers import shapes_of
from st_jv5.folders.licenses import JINA_LICENSE, Licenses, show_licenses
from st_jv5.folders.trust import check_folder, check_link, check_stock, check_stock_settings
from st_jv5.modules import AdapterRouter, LastTokenPooling, MatryoshkaTruncate
from st_jv5.modules.adapter_router import SETTINGS_FILE
from st_jv5.modules.pooling import is_last_token
from st_jv5.student.build import MATRYOSHKA_DIMS
from st_jv5.task_table import DEFAULT_PROMPT_NAME, PROMPTS, TASKS, Task, unknown_name

MODEL_TYPE = "jina_embeddings_v5"
TEACHER = {"Qwen/Qwen3-Embedding-4B": "apache-2.0"}
"""What they were distilled from (section 3 of arXiv:2602.15547), and its licence."""
STOCK_TYPES = ("qwen3", "eurobert")
WANTED = ["*.json", "model*.safetensors", "adapters/*/*.json", "adapters/*/*.safetensors"]
"""What is fetched from the Hub: no code, no pickle, no other engine's weights."""


def is_jina_v5(path_or_id: str | Path, revision: str | None = None) -> bool:
    """Whether a folder or Hub id is a published jina-embeddings-v5-text model with adapters."""
    config = Path(path_or_id) / "config.json"
    if not Path(path_or_id).is_dir():
        try:
            config = Path(hf_hub_download(str(path_or_id), "config.json", revision=revision))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
            return False
    return config.is_file() and read_json(config).get("model_type") == MODEL_TYPE


def load_model(
    name: str,
    revision: str | None = None,
    *,
    dtype: str | None = None,
    device: str | None = None,
) -> SentenceTransformer:
    """Load a published jina v5 model, an st_jv5 model or a stock one, by folder or Hub id.

    Args:
        name: Folder or Hub id.
        revision: Branch, tag or commit of a Hub model.
        dtype: Dtype of the weights, such as ``bfloat16``; None loads them as they are stored.
        device: A torch device such as ``cuda:1``; None: sentence-transformers chooses.
    """
    if is_jina_v5(name, revision):
        return load_jina_v5(name, revision=revision, dtype=dtype, device=device)
    if (Path(name) / SETTINGS_FILE).is_file():
        check_folder(name)  # before sentence-transformers reads a file of it
    else:
        _check_others(name, revision)
    kwargs = {"dtype": dtype} if dtype else {}
    try:
        return SentenceTransformer(name, revision=revision, device=device, model_kwargs=kwargs)
    except OSError as error:
        if Path(name).is_dir():
            raise
        told = f"{name} is not a folder here, nor a model that the Hub gives: {error}"
        raise OSError(told) from error


def _check_others(name: str, revision: str | None) -> None:
    """What may lead out of a model of others, in a folder or on the Hub."""
    if Path(name).is_dir():
        check_stock(name)
    elif path := Transformer.load_file_path(name, "sentence_bert_config.json", revision=revision):
        check_stock_settings(path)


def load_jina_v5(
    path_or_id: str | Path,
    revision: str | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    default_task: str | None = None,
    **kwargs: Any,
) -> SentenceTransformer:
    """Load a published jina-embeddings-v5-text model (small or nano) as an st_jv5 model.

    The backbone is the stock Qwen3 or EuroBERT class of transformers, whose weights have the same
    names. The folder's remote code is never run, so ``trust_remote_code`` is not needed. The
    tokenizer is used as published: small pools the last token of the text, nano pools its EOS.

    The publisher also offers models with one task merged into the weights (``...-retrieval``). Such
    a model loads without adapters: its base is the task, and ``encode(texts)`` needs no ``task``.

    The licence of the weights is CC BY-NC 4.0. It is logged once, and saved with every copy of the
    model (:class:`~st_jv5.folders.licenses.Licenses`).

    Args:
        path_or_id: Folder or Hub id.
        revision: Branch, tag or commit of the Hub repository, for backbone, tokenizer and
            adapters.
        dtype: Dtype of the weights; None takes the one in the config.
        default_task: Task of calls that name no task.
        kwargs: ``token``, ``cache_folder`` and ``local_files_only`` are used for the Hub; all
            others are passed to ``SentenceTransformer``: ``device``, ``truncate_dim``, ``prompts``,
            ...

    Returns:
        A model with the adapters of the folder.

    Raises:
        ValueError: The folder is not a jina-embeddings-v5-text model, or a file is missing or
            broken; the message names it.

    Example:
        >>> model = load_jina_v5(jina_folder, default_task="retrieval")
        >>> tasks(model)
        ['retrieval', 'text-matching', 'clustering', 'classification']
    """
    hub = {key: kwargs.pop(key, None) for key in ("token", "cache_folder", "local_files_only")}
    source = Path(path_or_id)
    if not source.is_dir():
        source = Path(
            snapshot_download(
                str(path_or_id),
                revision=revision,
                allow_patterns=WANTED,
                token=hub["token"],
                cache_dir=hub["cache_folder"],
                local_files_only=bool(hub["local_files_only"]),
            )
        )
    config, weights, adapters = _read(source)
    with tempfile.TemporaryDirectory() as folder:
        _stage(source, Path(folder), config, weights)
        router = AdapterRouter(folder, model_kwargs={} if dtype is None else {"dtype": dtype})
    width = router.get_embedding_dimension()
    router.matryoshka_dims = tuple(dim for dim in MATRYOSHKA_DIMS if dim <= width)
    for name, adapter in adapters.items():
        lora, tensors, _ = read_adapter(adapter / CONFIG_FILE, adapter / WEIGHTS_FILE)
        router.add_adapter(TASKS.get(name, Task(name)), lora, tensors, source=adapter)
    if default_task is not None and default_task not in [*adapters, "base"]:
        raise ValueError(unknown_name("task", default_task, [*adapters, "base"], str(source)))
    router.default_task = default_task
    router.theta_train = {}  # the folder names the one it is served at alone
    router.base_prompts = _prompts(source)
    name = Path(path_or_id).name if Path(path_or_id).is_dir() else str(path_or_id)
    router.licenses = Licenses(base={name: JINA_LICENSE}, teacher=dict(TEACHER))
    show_licenses(router.licenses, path_or_id)
    settings = {
        "prompts": dict(router.base_prompts),
        "default_prompt_name": DEFAULT_PROMPT_NAME,
        "similarity_fn_name": "cosine",
        **kwargs,
    }
    model = SentenceTransformer(
        modules=[router, LastTokenPooling(width), MatryoshkaTruncate()], **settings
    )
    model.model_card_data.license = JINA_LICENSE
    return model


def _read(source: Path) -> tuple[dict[str, Any], list[Path], dict[str, Path]]:
    """Config, weights and adapters of a folder; an error says what is missing or not to be read."""
    config = read_json(source / "config.json")
    kind = config.get("model_type")
    if kind not in (MODEL_TYPE, *STOCK_TYPES):
        raise ValueError(f"{source}/config.json has model_type {kind!r}, not {MODEL_TYPE!r}")
    if kind != MODEL_TYPE and not is_last_token(source / "1_Pooling" / "config.json"):
        raise ValueError(
            f"{source}/config.json has model_type {kind!r}, and 1_Pooling/config.json does not "
            f"pool the last token: this is neither a {MODEL_TYPE} model nor one merged from it"
        )
    for path in source.rglob("*"):
        if path.is_symlink():
            check_link(path, source)
        if not path.is_dir():
            check_regular(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (source / name).is_file():
            raise ValueError(f"{source} has no {name}")
    weights = sorted(source.glob("model*.safetensors"))
    if not weights:
        raise ValueError(f"{source} has no model.safetensors")
    tensors = {name for path in weights for name in shapes_of(path)}
    check_numbers(source / "config.json", config, len(tensors))
    names = sorted(path.parent.name for path in source.glob(f"adapters/*/{CONFIG_FILE}"))
    if not names and kind == MODEL_TYPE:
        raise ValueError(f"{source} has no adapters/<task>/{CONFIG_FILE}")
    for name in names:
        if not TASK_NAME.fullmatch(name):
            raise ValueError(f"{source}/adapters has {name!r}, which cannot be the name of a task")
        if not (source / "adapters" / name / WEIGHTS_FILE).is_file():
            raise ValueError(f"{source}/adapters/{name} has no {WEIGHTS_FILE}")
    names.sort(key=lambda name: list(TASKS).index(name) if name in TASKS else len(TASKS))
    return config, weights, {name: source / "adapters" / name for name in names}


def _stage(source: Path, stock: Path, config: dict[str, Any], weights: list[Path]) -> None:
    """A folder of the stock class: links to the weights (or copies), configs that name no code."""
    write_json(stock / "config.json", _stock_settings(config, weights))
    for path in [*weights, *source.glob("*.safetensors.index.json"), source / "tokenizer.json"]:
        _place(path.resolve(), stock / path.name)
    tokenizer_config = read_json(source / "tokenizer_config.json")
    tokenizer_config.pop("auto_map", None)
    check_tokenizer_config(source / "tokenizer_config.json", tokenizer_config)
    write_json(stock / "tokenizer_config.json", tokenizer_config)
    for path in source.glob("special_tokens_map.json"):
        shutil.copy(path, stock)


def stock_config(folder: str | Path) -> PreTrainedConfig:
    """The architecture of a published folder, as transformers knows it; weights are not read."""
    config = read_json(Path(folder) / "config.json")
    weights = sorted(Path(folder).glob("model*.safetensors"))
    settings = _stock_settings(config, weights)
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def _stock_settings(config: Mapping[str, Any], weights: list[Path]) -> dict[str, Any]:
    """A config that names no code, of the stock class."""
    ours = ("auto_map", "task_names", "architectures")
    settings = {name: value for name, value in config.items() if name not in ours}
    if settings["model_type"] == MODEL_TYPE:
        settings["model_type"] = _stock_type(weights)
    return settings


def _place(path: Path, target: Path) -> None:
    """A link to a file, where the system grants one (Windows does not to everybody), or a copy."""
    try:
        target.symlink_to(path)
    except OSError:
        shutil.copyfile(path, target)


def _prompts(source: Path) -> dict[str, str]:
    """A sibling's own prompts, where it has both."""
    path = source / "config_sentence_transformers.json"
    found = check_prompts(path, read_json(path)) if path.is_file() else {}
    return found if set(PROMPTS) <= set(found) else dict(PROMPTS)


def _stock_type(weights: list[Path]) -> str:
    """Qwen3 normalises queries and keys, EuroBERT does not."""
    for path in weights:
        with safe_open(path, framework="pt") as file:
            if any("q_norm" in name for name in file.keys()):  # noqa: SIM118
                return "qwen3"
    return "eurobert"
