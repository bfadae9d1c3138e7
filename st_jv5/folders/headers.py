"""What a folder's weights are, by the headers of their files alone, and whether they fit."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, PreTrainedModel

from st_jv5.files import check_regular, read_json
from st_jv5.folders.configs import check_adapter_config, check_plain

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor -> shape."""

SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def shapes_of(path: str | Path) -> Shapes:
    """Tensors and their shapes by the header of a safetensors file, compared with its size."""
    path = Path(path)
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except Exception as error:  # the library's own error type has no public name for all causes
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


DTYPES = {
    "F64": "torch.float64",
    "F32": "torch.float32",
    "BF16": "torch.bfloat16",
    "F16": "torch.float16",
    "I64": "torch.int64",
    "BOOL": "torch.bool",
}
"""A type in a safetensors header -> PyTorch's name."""


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
    named = index_map(path)
    for shard in set(named.values()):
        if not SHARD.fullmatch(shard):
            raise ValueError(
                f"{path} names the shard {shard[:80]!r}, which is not a safetensors file beside it "
                f"(model-00001-of-00002.safetensors): it may lie outside the folder, or hold code"
            )
        if not (path.parent / shard).is_file():
            raise ValueError(f"{path} names the shard {shard!r}, which is not there")
    return named


def index_map(path: Path) -> dict[str, str]:
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
        raise ValueError(
            f"{path} does not describe a model: {type(error).__name__}: {error}"
        ) from error
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
        path: Path of the adapter's weights, for messages.
        shapes: Shapes of its tensors.
        rank: What ``adapter_config.json`` says.
        weights: Shape of each of the backbone's ``<layer>.weight``, where known.
    """
    if not shapes:
        raise ValueError(f"{path} holds no tensors")
    for name, shape in shapes.items():
        found = LORA_TENSOR.fullmatch(name)
        if not found or len(shape) != 2:
            raise ValueError(f"{path}: {name[:200]} {shape} is not part of a LoRA layer")
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


WIDEST_HIDDEN = 1 << 16
"""Largest width of a head's hidden layer."""


def check_heads(folder: Path, width: int, tasks: Collection[str]) -> None:
    """The folder of heads: a map for each of some of the model's tasks, as wide as the backbone."""
    path = folder / "config.json"
    told = read_json(path)
    names = told.get("tasks")
    if told.get("dim") != width:
        raise ValueError(f"{path}: dim must be {width}, the backbone's width, not {told!s:.80}")
    if not isinstance(names, list) or not all(isinstance(n, str) and n in tasks for n in names):
        raise ValueError(f"{path}: tasks must be some of {', '.join(tasks)}, not {names!s:.80}")
    hidden = told.get("hidden", {})
    if not isinstance(hidden, dict) or not all(
        name in names and type(wide) is int and 1 <= wide <= WIDEST_HIDDEN
        for name, wide in hidden.items()
    ):
        raise ValueError(
            f"{path}: hidden must map some of {', '.join(names)} to 1..{WIDEST_HIDDEN}, not "
            f"{hidden!s:.80}"
        )
    wanted: dict[str, tuple[int, ...]]
    wanted = {f"maps.{name}.weight": (width, width) for name in names}
    wanted |= {f"maps.{name}.bias": (width,) for name in names}
    for name, wide in hidden.items():
        layer = f"layers.{name}"
        wanted |= {f"{layer}.0.weight": (wide, width), f"{layer}.0.bias": (wide,)}
        wanted |= {f"{layer}.2.weight": (width, wide), f"{layer}.2.bias": (width,)}
    path = folder / "model.safetensors"
    if (shapes := shapes_of(path)) != wanted:
        raise ValueError(f"{path} must hold {wanted!s:.200}, not {shapes!s:.200}")


def check_rotation(folder: Path, width: int) -> None:
    """A rotation's folder: one square matrix, as wide as the backbone."""
    path = folder / "config.json"
    if (told := read_json(path)) != {"dim": width}:
        raise ValueError(f"{path}: dim must be {width}, the backbone's width, not {told!s:.80}")
    path = folder / "model.safetensors"
    if (shapes := shapes_of(path)) != {"linear.weight": (width, width)}:
        raise ValueError(f"{path} must hold linear.weight {(width, width)}, not {shapes!s:.200}")


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
