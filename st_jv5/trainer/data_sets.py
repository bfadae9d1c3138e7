"""Data sets for the trainer: what their columns are, and rows that cannot be trained on."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from sentence_transformers import SentenceTransformer

from st_jv5.adapters import router_of
from st_jv5.task_table import BASE, LABEL_COLUMNS, Task, column_prompts

Tasks = str | Mapping[str, str]

# ------------------------------------------------------------------------------- prompts


def trainer_prompts(
    model: SentenceTransformer,
    tasks: Tasks,
    train_dataset: Dataset | IterableDataset | dict[str, Dataset],
) -> dict[str, Any]:
    """The ``args.prompts`` that a plain SentenceTransformerTrainer needs: a prompt for each column.

    Args:
        model: An st_jv5 model.
        tasks: An adapter, or ``"base"``; or a dict from data set to adapter.
        train_dataset: One data set, or several by name.

    Returns:
        Dict column -> prompt, or data set -> column -> prompt.

    Raises:
        ValueError: A data set has no text column, or ``tasks`` has no task for it.

    Example:
        >>> trainer_prompts(student, "base", pairs)
        {'query': 'Query: ', 'positive': 'Document: '}
    """
    if isinstance(train_dataset, dict):
        return {name: _prompts(model, tasks, name, one) for name, one in train_dataset.items()}
    return _prompts(model, tasks, "", train_dataset)


def _prompts(
    model: SentenceTransformer, tasks: Tasks, name: str, data: Dataset | IterableDataset
) -> dict[str, str]:
    if not isinstance(tasks, str) and name not in tasks:
        if not name:
            raise ValueError("tasks by data set need a DatasetDict to train on")
        raise ValueError(f"tasks has no task for the data set {name!r}")
    task = tasks if isinstance(tasks, str) else tasks[name]
    router = router_of(model)
    known = None if task == BASE else router.resolve(task)
    table: Task = router.tasks[known] if known else router.base_task
    return column_prompts(table, data.column_names)


def add_prompts(prompts: dict[str, Any], more: Mapping[str, Any], where: str) -> None:
    """Put prompts of further data sets beside those of training.

    Args:
        prompts: column -> prompt, or data set -> column -> prompt; gets what it lacks.
        more: The same of the further data sets; by data set where ``prompts`` is not: its columns.
        where: What the further ones are called.

    Raises:
        ValueError: A column would have two prompts.
    """
    for name, prompt in more.items():
        if isinstance(prompt, Mapping):
            nested = not prompts or isinstance(next(iter(prompts.values())), dict)
            inner = prompts.setdefault(name, {}) if nested else prompts
            add_prompts(inner, prompt, f"{where}[{name!r}]")
        elif prompts.setdefault(name, prompt) != prompt:
            raise ValueError(
                f"{where}: the column {name!r} would be read behind {prompt!r}, but in training it "
                f"is behind {prompts[name]!r}; name and order the columns as in training"
            )


def text_columns(data: Dataset | IterableDataset) -> list[str]:
    """The columns that are read as text, in their order."""
    return [name for name in data.column_names or () if name not in LABEL_COLUMNS]


# ---------------------------------------------------------------------------------- rows


def own_copy(data: Any, where: str) -> Any:
    """The data as a trainer may change it, with nothing in it that cannot be trained on.

    sentence-transformers writes a data set's name into it: one that stands under two names needs
    two copies.

    Args:
        data: A data set, several by name, or None.
        where: ``train_dataset`` or ``eval_dataset``, for messages.

    Returns:
        The same rows.

    Raises:
        ValueError: A data set is of a kind that sentence-transformers does not take, is empty, has
            no text, two label columns, a column that is neither text nor labels, or a row without a
            text or label, or with a label that is not finite; names set, column and rows.

    Example:
        >>> own_copy(pairs.select([]), "train_dataset")
        Traceback (most recent call last):
        ValueError: train_dataset has no rows
    """
    if isinstance(data, IterableDatasetDict) or (
        isinstance(data, dict)
        and any(isinstance(data_set, IterableDataset) for data_set in data.values())
    ):
        raise ValueError(
            f"{where} is several IterableDatasets, which sentence-transformers does not train on; "
            f"give one alone, or a DatasetDict"
        )
    if isinstance(data, dict):
        for name, data_set in data.items():
            _check(data_set, f"{where}[{name!r}]")
        return DatasetDict({name: copy(data_set) for name, data_set in data.items()})
    if isinstance(data, Dataset | IterableDataset):
        _check(data, where)
    return copy(data)


def _check(data: Dataset | IterableDataset, where: str) -> None:
    if data.column_names is None:
        return  # an IterableDataset without features: sentence-transformers says what it wants
    if isinstance(data, Dataset) and not len(data):
        raise ValueError(f"{where} has no rows")
    labels = [name for name in LABEL_COLUMNS if name in data.column_names]
    if len(labels) > 1:
        raise ValueError(
            f"{where} has the label columns {labels}; sentence-transformers takes one, and would "
            f"read {labels[1]!r} as text; drop or rename the others"
        )
    if not text_columns(data):
        raise ValueError(f"{where} has no text column, only {data.column_names}")
    if not isinstance(data, Dataset) or data.format["type"] == "custom":
        return  # its rows are known when they are read
    for name in data.column_names:
        if name in labels:
            _check_labels(data, name, where)
        else:
            _check_texts(data, name, where)


def _check_texts(data: Dataset, column: str, where: str) -> None:
    kind = data.data.column(column).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        _refuse_rows(data, column, where, "has no text")
        return
    way_out = f"drop it (remove_columns({column!r})) or make it text"
    if _is_number(kind):
        way_out += "; labels and scores are called label or score"
    if _is_list(kind):
        way_out += "; several texts of a row each want a column"
    raise ValueError(
        f"{where}: column {column!r} holds {kind}, not text (its first row is "
        f"{data.with_format(None)[0][column]!r}); {way_out}"
    )


def _check_labels(data: Dataset, column: str, where: str) -> None:
    kind = data.data.column(column).type
    inner = kind
    while _is_list(inner):
        inner = inner.value_type
    if not _is_number(inner):
        raise ValueError(
            f"{where}: column {column!r} holds {kind}, not numbers (its first row is "
            f"{data.with_format(None)[0][column]!r}); names of classes become numbers by "
            f"class_encode_column({column!r})"
        )
    _refuse_rows(data, column, where, "has no finite number")


def _refuse_rows(data: Dataset, column: str, where: str, what: str) -> None:
    """Refuse rows with nothing in a column, or with a score that is not finite.

    Arrow counts them, in any number of rows; Python sees those alone that are refused.
    """
    begin, found = 0, []
    for chunk in data.data.column(column).chunks:
        found.append(begin + _broken(chunk))
        begin += len(chunk)
    broken = np.concatenate(found)
    if broken.size and data._indices is not None:
        order = data._indices.column(0).to_numpy()
        broken = np.flatnonzero(np.isin(order, broken))
    if broken.size:
        rows = ", ".join(map(str, broken[:10])) + (", ..." if broken.size > 10 else "")
        raise ValueError(
            f"{where}: column {column!r} {what} in {broken.size} of {len(data)} rows: {rows}; fill "
            f"or drop them"
        )


def _broken(values: pa.Array, in_vector: bool = False) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions of rows with nothing in them, or with a score that is not finite.

    In a vector a NaN stays: the teacher's is missing there.
    """
    if pa.types.is_floating(values.type) and not in_vector:
        finite = pc.fill_null(pc.is_finite(values), False)
        return np.flatnonzero(~finite.to_numpy(zero_copy_only=False))
    broken = np.zeros(0, dtype=np.int64)
    if values.null_count:
        broken = np.flatnonzero(pc.is_null(values).to_numpy(zero_copy_only=False))
    if _is_list(values.type):
        inner = values.flatten()
        within = _broken(inner, in_vector or len(inner) > len(values))
        if within.size:
            broken = np.union1d(broken, pc.list_parent_indices(values).to_numpy()[within])
    return broken


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
