"""ONNX and OpenVINO: one graph from tokens to unit vectors, beside its tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from st_jv5.encoding import encode_mixed
from st_jv5.engines import all_tasks
from st_jv5.engines.graph import (
    Array,
    Run,
    TokensToVectors,
    quantize_onnx,
    quantize_openvino,
    start_onnx,
    start_openvino,
    write_onnx,
    write_openvino,
)
from st_jv5.export.merged import ALL_TASKS, card, keep_only, prompts_of
from st_jv5.export.parity import Parity, compare, prompted, source_vectors
from st_jv5.files import read_json, write_json, write_text

ST_CONFIG = "config_sentence_transformers.json"
KEPT = ("README.md", "config.json", ST_CONFIG, "tokenizer.json", "tokenizer_config.json")
"""What stays of the merged folder."""


def write_all_tasks(
    model: SentenceTransformer, folder: Path, int8: bool, texts: Sequence[str]
) -> list[Parity]:
    """Turn a merged folder of the base into a graph's of all tasks, with ``tasks.json``."""
    names = all_tasks.task_names(model)
    keep_only(folder, [name for name in KEPT if name != ST_CONFIG])
    write_text(folder / "README.md", card(model, names[0], ALL_TASKS))
    prompts = [prompts_of(model, name) for name in names]
    told = [{"name": n, "prompts": own} for n, own in zip(names, prompts, strict=True)]
    pad = model.tokenizer.pad_token_id
    write_json(
        folder / "tasks.json",
        {"tasks": told, "max_tokens": model.max_seq_length, "pad_token_id": pad},
    )
    files = [(all_tasks.write_all_tasks(model, folder / "model.onnx"), True)]
    if int8:
        files.append((quantize_onnx(files[0][0], folder / "model_int8.onnx"), False))
    # Each text under another task than the one before it.
    tasks = np.arange(len(texts)) % len(names)
    asked = [
        list(prompts[task])[i // len(names) % len(prompts[task])] for i, task in enumerate(tasks)
    ]
    source = copy.deepcopy(model).float() if model.dtype.itemsize < 4 else model
    vectors = encode_mixed(source, texts, [names[task] for task in tasks], prompt_names=asked)
    given = [prompts[task][n] + text for task, n, text in zip(tasks, asked, texts, strict=True)]

    def found(path: Path) -> Array:
        """In mixed batches, then in batches of one task."""
        run = start_onnx(path)
        mixed = embed(run, folder, given, tasks)
        alone = np.empty_like(mixed)
        for task in np.unique(tasks):
            rows = np.flatnonzero(tasks == task)
            alone[rows] = embed(run, folder, [given[row] for row in rows], tasks[rows])
        return np.concatenate([mixed, alone])

    both = np.concatenate([vectors, vectors])
    return [compare("onnx", path, both, found(path), bound) for path, bound in files]


def write(
    model: SentenceTransformer,
    task: str,
    backbone: PreTrainedModel,
    folder: Path,
    kind: str,
    int8: bool,
    texts: Sequence[str],
) -> list[Parity]:
    """Turn a merged folder into a graph's: tokenizer and prompts stay, the weights go."""
    keep_only(folder, KEPT)
    graph = TokensToVectors(model, backbone)
    if kind == "onnx":
        files = [(write_onnx(graph, folder / "model.onnx"), True)]
        if int8:
            files.append((quantize_onnx(files[0][0], folder / "model_int8.onnx"), False))
    else:
        files = [(write_openvino(graph, folder / "openvino_model.xml"), True)]
        if int8:
            files.append(
                (quantize_openvino(files[0][0], folder / "openvino_model_int8.xml"), False)
            )
    start = start_onnx if kind == "onnx" else start_openvino
    named, vectors = source_vectors(model, task, texts)
    texts = prompted(folder, named)
    return [
        compare(kind, path, vectors, embed(start(path), folder, texts), bound)
        for path, bound in files
    ]


def embed(
    run: Run,
    folder: Path,
    texts: Sequence[str],
    tasks: Array | None = None,
    batch_size: int = 16,
) -> Array:
    """Texts with their prompts through a graph: ``(n, D)``. Needs no transformers.

    Args:
        run: The graph.
        folder: Has its tokenizer.
        texts: ``n`` texts.
        tasks: ``(n,)``, numbers, for a graph of all tasks.
        batch_size: Texts, of about the same length.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = read_json(folder / "tokenizer_config.json")
    tokenizer.enable_truncation(config["model_max_length"])
    pad = config["pad_token"]
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    order = np.argsort([len(text) for text in texts], kind="stable")
    vectors = []
    for begin in range(0, len(texts), batch_size):
        rows = order[begin : begin + batch_size]
        batch = tokenizer.encode_batch([texts[row] for row in rows])
        ids = np.array([each.ids for each in batch], dtype=np.int64)
        mask = np.array([each.attention_mask for each in batch], dtype=np.int64)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if tasks is not None:
            inputs["task"] = tasks[rows]
        vectors.append(run(inputs))
    found: Array = np.concatenate(vectors)[np.argsort(order)]
    return found
