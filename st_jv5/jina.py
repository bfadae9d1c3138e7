"""The published jina-embeddings-v5-text folders, read without their remote code."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open
from sentence_transformers import SentenceTransformer

from st_jv5.adapter_file import CONFIG_FILE, WEIGHTS_FILE, read_config, read_tensors
from st_jv5.files import read_json, write_json
from st_jv5.modules import AdapterRouter, LastTokenPooling, MatryoshkaTruncate
from st_jv5.student import MATRYOSHKA_DIMS
from st_jv5.tasks import DEFAULT_PROMPT_NAME, PROMPTS, TASKS, Task, unknown_name

MODEL_TYPE = "jina_embeddings_v5"
WANTED = ["*.json", "*.txt", "model*.safetensors", "adapters/*"]


def is_jina_v5(path_or_id: str | Path) -> bool:
    """Whether a folder or Hub id is a published jina-embeddings-v5-text model."""
    config = Path(path_or_id) / "config.json"
    if not Path(path_or_id).is_dir():
        try:
            config = Path(hf_hub_download(str(path_or_id), "config.json"))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
            return False
    return config.is_file() and read_json(config).get("model_type") == MODEL_TYPE


def load_jina_v5(
    path_or_id: str | Path,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    default_task: str | None = None,
) -> SentenceTransformer:
    """Load a published jina-embeddings-v5-text model (small or nano) as a model of ours.

    The backbone is the stock Qwen3 or EuroBERT class, which has the same weights' names; the
    folder's remote code is neither imported nor asked about. The tokenizer is taken as published:
    small's pooled token is the last content token, nano's its EOS.

    Args:
        path_or_id: Folder or Hub id.
        revision: Of the Hub repository; backbone, tokenizer and adapters come from it alike.
        dtype: Of the weights; None as the config says.
        default_task: Task of calls that name none.

    Returns:
        A model with the adapters of the folder.

    Raises:
        ValueError: The folder is not of this kind, or names what it lacks.

    Example:
        >>> model = load_jina_v5(jina_folder, default_task="retrieval")
        >>> tasks(model)
        ['retrieval', 'text-matching', 'clustering', 'classification']
    """
    source = Path(path_or_id)
    if not source.is_dir():
        source = Path(snapshot_download(str(path_or_id), revision=revision, allow_patterns=WANTED))
    config = read_json(source / "config.json")
    if config.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{source}/config.json has model_type {config.get('model_type')!r}, not {MODEL_TYPE!r}"
        )
    weights = sorted(source.glob("model*.safetensors"))
    if not weights:
        raise ValueError(f"{source} has no model.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        stock = Path(folder)
        for name in ("auto_map", "task_names", "architectures"):
            config.pop(name, None)
        write_json(stock / "config.json", {**config, "model_type": _stock_type(weights)})
        for path in [*weights, *source.glob("*.index.json"), source / "tokenizer.json"]:
            (stock / path.name).symlink_to(path.resolve())
        tokenizer_config = read_json(source / "tokenizer_config.json")
        tokenizer_config.pop("auto_map", None)
        write_json(stock / "tokenizer_config.json", tokenizer_config)
        for path in source.glob("special_tokens_map.json"):
            shutil.copy(path, stock)
        router = AdapterRouter(folder, model_kwargs={} if dtype is None else {"dtype": dtype})
    width = router.get_embedding_dimension()
    router.matryoshka_dims = tuple(dim for dim in MATRYOSHKA_DIMS if dim <= width)
    found = sorted(path.parent.name for path in source.glob(f"adapters/*/{CONFIG_FILE}"))
    if not found:
        raise ValueError(f"{source} has no adapters/<task>/{CONFIG_FILE}")
    for name in sorted(found, key=lambda name: list(TASKS).index(name) if name in TASKS else 9):
        adapter = source / "adapters" / name
        tensors, _ = read_tensors(adapter / WEIGHTS_FILE)
        lora = read_config(adapter / CONFIG_FILE)
        router.add_adapter(TASKS.get(name, Task(name)), lora, tensors, adapter)
    if default_task is not None and default_task not in [*found, "base"]:
        raise ValueError(unknown_name("task", default_task, found, str(source)))
    router.default_task = default_task
    return SentenceTransformer(
        modules=[router, LastTokenPooling(width), MatryoshkaTruncate()],
        prompts=dict(PROMPTS),
        default_prompt_name=DEFAULT_PROMPT_NAME,
        similarity_fn_name="cosine",
    )


def _stock_type(weights: list[Path]) -> str:
    """Qwen3 normalises queries and keys, EuroBERT does not."""
    for path in weights:
        with safe_open(path, framework="pt") as file:
            if any("q_norm" in name for name in file.keys()):  # noqa: SIM118
                return "qwen3"
    return "eurobert"
