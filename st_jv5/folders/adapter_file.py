"""One adapter in a folder of PEFT's format, which also names its task and its base."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import safe_open
from torch import Tensor

from st_jv5.files import check_regular, read_json, write_json, write_tensors
from st_jv5.folders.configs import TASK_NAME, check_adapter_config, check_plain
from st_jv5.folders.headers import LORA_TENSOR, Shapes, check_lora_shapes, shapes_of
from st_jv5.task_table import Task

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The content of ``adapters/<task>/``, a folder that PEFT's ``from_pretrained`` reads.

    Task and base are named in the header of the weights, so the folder is complete by itself.

    Example:
        >>> save_adapter(model, "retrieval", task_folder)
        >>> adapter = Adapter.load(task_folder)
        >>> adapter.task.name, adapter.config.r
        ('retrieval', 4)
    """

    task: Task
    config: LoraConfig
    tensors: Mapping[str, Tensor]
    """PEFT's names -> weights."""
    base_sha256: str
    """Hash of the backbone's weights that the adapter was trained on."""

    def save(self, folder: str | Path) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``."""
        config = {
            key: sorted(value) if isinstance(value, set) else value
            for key, value in self.config.to_dict().items()
        }
        header = {
            "task": self.task.name,
            "prompts": dict(self.task.prompts),
            "aliases": list(self.task.aliases),
            "base_sha256": self.base_sha256,
        }
        write_json(
            Path(folder) / CONFIG_FILE,
            {**config, "inference_mode": True, "base_model_name_or_path": None},
        )
        write_tensors(Path(folder) / WEIGHTS_FILE, self.tensors, {"st_jv5": json.dumps(header)})

    def scaled(self, strength: float) -> Adapter:
        """The same adapter with its update multiplied by ``strength`` (>= 0; 0 gives the base).

        B is scaled and not alpha, because every engine reads the weights.
        """
        if not strength >= 0:
            raise ValueError(f"strength must be 0 or more, not {strength}")
        tensors = {
            name: tensor * strength if ".lora_B." in name else tensor
            for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=tensors)

    @classmethod
    def load(cls, folder: str | Path, weights: Shapes | None = None) -> Adapter:
        """Read a folder, or the one adapter of a checkpoint.

        Args:
            folder: Where ``adapter_config.json`` is, or a checkpoint.
            weights: Tensor -> shape in the backbone; a layer that does not fit is an error before
                any weight is read.

        Raises:
            FileNotFoundError: A file is missing; the message names it.
            ValueError: A file is wrong, or a checkpoint holds several adapters.
        """
        folder = Path(folder)
        within = sorted(path.parent for path in folder.glob(f"adapters/*/{CONFIG_FILE}"))
        if within and not (folder / CONFIG_FILE).exists():
            if len(within) > 1:
                raise ValueError(f"{folder} holds several adapters; name one of {within}")
            folder = within[0]
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} has no {name}")
        config_path, weights_path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
        config, tensors, metadata = read_adapter(config_path, weights_path, weights)
        if "st_jv5" not in metadata:
            raise ValueError(f"{weights_path} does not say which task and base it belongs to")
        told = _told(metadata["st_jv5"], weights_path)
        return cls(
            task=Task(told["task"], told["prompts"], tuple(told["aliases"])),
            config=config,
            tensors=tensors,
            base_sha256=told["base_sha256"],
        )


def _told(metadata: str, path: str | Path) -> dict[str, Any]:
    """What our header says, of the right types."""
    try:
        header = json.loads(metadata)
        texts = [header["task"], header["base_sha256"], header["prompts"]["document"]]
        texts += [*header["prompts"].values(), *header["aliases"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} has an st_jv5 header that cannot be read: {error!r}") from error
    if not all(isinstance(text, str) for text in texts) or not TASK_NAME.fullmatch(header["task"]):
        raise ValueError(f"{path} has an st_jv5 header that is not valid: {metadata[:80]}")
    check_plain(path, header)
    found: dict[str, Any] = header
    return found


def base_of(metadata: Mapping[str, str], path: str | Path) -> str | None:
    """The hash of the base that a file's header names; None if it is not an st_jv5 file."""
    return str(_told(metadata["st_jv5"], path)["base_sha256"]) if "st_jv5" in metadata else None


def read_adapter(
    config_path: str | Path, weights_path: str | Path, weights: Shapes | None = None
) -> tuple[LoraConfig, dict[str, Tensor], dict[str, str]]:
    """Config, tensors and the header's metadata of one adapter; headers are judged before weights.

    Args:
        config_path: ``adapter_config.json``.
        weights_path: ``adapter_model.safetensors``.
        weights: Tensor -> shape of the backbone, where known.
    """
    stored = read_json(config_path)
    taken = check_adapter_config(config_path, stored)
    check_lora_shapes(weights_path, shapes := shapes_of(weights_path), taken["r"], weights)
    layers = sorted({found[1] for name in shapes if (found := LORA_TENSOR.fullmatch(name))})
    names = taken.get("target_modules")
    rules = ("layers_to_transform", "layers_pattern", "exclude_modules")
    if not isinstance(names, list) or any(stored.get(rule) for rule in rules):
        names = layers  # a pattern is never run: the tensors say which layers it chose
    config = LoraConfig(**{**taken, "target_modules": names, "init_lora_weights": "gaussian"})
    tensors, metadata = read_tensors(weights_path)
    return config, tensors, metadata


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header's metadata of a safetensors file; every number is finite."""
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except Exception as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    check_finite(path, tensors)
    return tensors, metadata


FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_finite(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """An error that names the first tensor with a number that is infinite or none."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS or tensor.is_meta or not tensor.numel():
            continue
        # One pass that makes no tensor as large; a number that is none comes through both.
        if not all(math.isfinite(float(end)) for end in torch.aminmax(tensor.detach())):
            raise ValueError(f"{path}: {name} has a number that is infinite or NaN")
