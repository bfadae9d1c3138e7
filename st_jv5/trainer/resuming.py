"""Going on from a checkpoint: is it whole, and is it of the same run?"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xxhash
from datasets import Dataset, IterableDataset
from safetensors import SafetensorError, safe_open
from sentence_transformers import SentenceTransformerTrainingArguments
from torch import nn
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from st_jv5.files import read_json, write_json

RUN_FILE = "run.json"
"""File of a checkpoint: the data, arguments and versions that it was written with."""

PACKAGES = ("torch", "transformers", "sentence-transformers", "peft")
"""Another version of one of these may round otherwise."""

NO_EFFECT = (
    *("output_dir", "run_name", "project", "report_to", "debug", "local_rank", "disable_tqdm"),
    *("log_", "logging_", "trackio_", "hub_", "push_to_hub", "save_", "enable_jit_checkpoint"),
    *("do_", "eval_", "per_device_eval_", "prediction_loss_only", "batch_eval_metrics", "include_"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "label_names"),
    *("resume_from_checkpoint", "restore_callback_states_from_checkpoint", "skip_memory_metrics"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "ddp_timeout"),
    *("torch_empty_cache_steps", "remove_unused_columns", "use_cpu"),
)
"""Training arguments that change no bit of the weights, by the beginning of their names."""

# ------------------------------------------------------------------------ what a run depends on


def run_settings(args: SentenceTransformerTrainingArguments, **further: Any) -> dict[str, Any]:
    """What the bits of a run depend on, beside the model that it began with and its data.

    Args:
        args: The trainer's arguments.
        further: The trainer's own settings; one named as an argument takes its place.

    Returns:
        Nested JSON.
    """
    without = ("num_train_epochs" if args.max_steps > 0 else "max_steps", *further)
    arguments = {
        field.name: getattr(args, field.name)
        for field in fields(args)
        if not field.name.startswith(NO_EFFECT) and field.name not in without
    }
    settings = {
        "processes": args.world_size,
        "device": args.device.type,
        "arguments": arguments,
        "trainer": further,
        "versions": {name: version(name) for name in PACKAGES},
    }
    plain: dict[str, Any] = _plain(settings)
    return plain


def loss_settings(loss: nn.Module | Mapping[str, nn.Module]) -> dict[str, Any]:
    """The settings of a loss, or of each data set's, and the stores that they read.

    Those that training moves are left out: the checkpoint holds them.
    """
    if isinstance(loss, Mapping):
        return {name: loss_settings(one) for name, one in loss.items()}
    config: Any = getattr(loss, "get_config_dict", dict)
    stores: list[Any] = [getattr(one, "store", None) for one in loss.modules()]
    told = [store.describe() for store in stores if hasattr(store, "describe")]
    return {"class": type(loss).__qualname__, **_untrained(config()), "stores": told}


def data_settings(data: Dataset | IterableDataset | Mapping[str, Dataset] | None) -> dict[str, Any]:
    """Rows, columns and content of the data that is trained on, or that of each set by its name."""
    if isinstance(data, Mapping):
        return {name: data_settings(one) for name, one in data.items()}
    if data is None:
        return {}
    columns = {name: str(kind) for name, kind in (data.features or {}).items()}
    if isinstance(data, IterableDataset):  # nobody knows its rows before they are read
        return {"columns": columns}
    return {"rows": len(data), "columns": columns, "content": content_hash(data)}


ROWS_AT_ONCE = 8192


def content_hash(data: Dataset) -> str:
    """A hash of the rows and of their order: 32 hexadecimal digits.

    The stored rows are hashed as Arrow holds them, piece by piece, and then the order in which they
    are read (``shuffle``, ``select``), so memory does not grow and no row becomes a Python object.
    If rows are transformed when they are read, the result is in the hash only if the transform has
    an attribute ``content``: a text that changes when its rows change.

    Example:
        >>> content_hash(pairs) == content_hash(pairs.select([0, 1]))
        True
        >>> content_hash(pairs) == content_hash(pairs.select([1, 0]))
        False
    """
    digest = xxhash.xxh3_128()
    table = data.data
    for begin in range(0, table.num_rows, ROWS_AT_ONCE):
        # In pieces of one size: how the rows were written makes no difference.
        piece = table.fast_slice(begin, min(ROWS_AT_ONCE, table.num_rows - begin))
        for batch in piece.combine_chunks().to_batches():
            digest.update(batch.serialize())
    if data._indices is not None:
        for order in data._indices.column(0).chunks:
            digest.update(order.to_numpy())
    transform = data.format["format_kwargs"].get("transform")
    digest.update(getattr(transform, "content", "").encode())
    return digest.hexdigest()


def _untrained(config: Any) -> Any:
    if not isinstance(config, Mapping):
        return config
    return {k: _untrained(v) for k, v in config.items() if not config.get(f"learn_{k}")}


def _plain(value: Any) -> Any:
    """A value as JSON; a value without JSON is replaced by its name."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        return {"class": type(value).__qualname__, **own}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


# ------------------------------------------------------------------------------ checkpoint files


class CannotResumeError(ValueError):
    """The checkpoint is incomplete, or was written with other data, arguments or versions."""


def last_checkpoint(folder: str | Path) -> str | None:
    """The last complete checkpoint in a folder, or None.

    A run that is killed while it saves leaves an incomplete checkpoint; transformers alone would
    resume from it.

    Example:
        >>> last_checkpoint("a/folder/without/any") is None
        True
    """
    steps = sorted(
        (int(path.name.removeprefix("checkpoint-")), path)
        for path in Path(folder).glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdecimal()
    )
    return next((str(path) for _, path in reversed(steps) if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        check_state(checkpoint)
    except ValueError:
        return False
    return True


def check_state(checkpoint: Path) -> None:
    """Refuse a checkpoint whose last file is missing or cut: a kill broke its save off."""
    file = checkpoint / TRAINER_STATE_NAME
    try:
        step = read_json(file).get("global_step")
    except ValueError as error:
        raise CannotResumeError(
            f"{checkpoint} is not a complete checkpoint ({error}; it is the last file of one to be "
            f"written); st_jv5.trainer.last_checkpoint finds the last complete one"
        ) from error
    if not isinstance(step, int):
        raise CannotResumeError(
            f"{checkpoint} is not a complete checkpoint ({file} has no global_step); "
            f"st_jv5.trainer.last_checkpoint finds the last complete one"
        )


def check_checkpoint(checkpoint: Path, processes: int | None, needed: Iterable[str] = ()) -> None:
    """Refuse a checkpoint that cannot be gone on from.

    Args:
        checkpoint: Folder of the checkpoint.
        processes: Number of processes that draw random numbers; None: they start again.
        needed: Files that it must hold beside those of every checkpoint.

    Raises:
        ValueError: A file is missing or cut; names it, and the way out.
    """
    states = [_random_state(rank, processes) for rank in range(processes or 0)]
    for name in (OPTIMIZER_NAME, SCHEDULER_NAME, *states, *needed):
        if not (checkpoint / name).is_file():
            raise CannotResumeError(
                f"{checkpoint} has no {name}, so a run cannot go on from it (save_only_model=True "
                f"leaves out the optimizer); resume from another, or load the weights and train "
                f"anew"
            )
    for file in sorted(checkpoint.rglob("*")):
        _check_file(file)


def _random_state(rank: int, processes: int | None) -> str:
    return "rng_state.pth" if processes == 1 else f"rng_state_{rank}.pth"


def _check_file(file: Path) -> None:
    """Whether it reaches to its end; the weights are not read."""
    try:
        if file.suffix in (".pt", ".pth"):
            zipfile.ZipFile(file).close()
        elif file.suffix == ".safetensors":
            with safe_open(file, "pt"):
                pass
        elif file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
    except (zipfile.BadZipFile, SafetensorError, ValueError) as error:
        raise CannotResumeError(
            f"{file} is cut or broken ({error}); resume from another checkpoint, or load weights "
            f"that are whole and train anew"
        ) from error


# ---------------------------------------------------------------------------- is it the same run


def write_settings(checkpoint: Path, settings: Mapping[str, Any]) -> None:
    write_json(checkpoint / RUN_FILE, settings)


def differences(checkpoint: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """What a run with these settings would have otherwise than the one that wrote a checkpoint.

    Returns:
        Name of a setting -> what was, and what is.
    """
    file = checkpoint / RUN_FILE
    if not file.exists():
        told = "is missing: another trainer or an older version wrote the checkpoint"
        return {RUN_FILE: f"{file} {told}, and nobody knows its data and arguments"}
    before = dict(_flat(read_json(file)))
    now = dict(_flat(settings))
    changed = {}
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if old != new:
            changed[key] = f"{key}: {old!r} then, {new!r} now"
    if "processes" in changed:
        changed["processes"] = (
            f"it was written by {before.get('processes')} processes, and these are "
            f"{now['processes']}: each would draw other rows and random numbers"
        )
    return changed


def _flat(settings: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}{key}.")
        else:
            yield f"{name}{key}", value
