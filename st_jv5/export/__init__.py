"""Export for other engines: a task as merged weights, ONNX, OpenVINO or GGUF, or all in one graph.

Each export is compared with the model when it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sentence_transformers import SentenceTransformer

from st_jv5.adapters import router_of
from st_jv5.choices import EXPORTS as KINDS
from st_jv5.engines import all_tasks
from st_jv5.engines.graph import check_installed
from st_jv5.export import gguf, graph
from st_jv5.export.merged import write_merged
from st_jv5.export.parity import (
    BOUNDS,
    Array,
    Parity,
    compare,
    parity_texts,
    source_vectors,
)
from st_jv5.files import whole_folder
from st_jv5.task_table import BASE, unknown_name

__all__ = [
    "BOUNDS",
    "KINDS",
    "Parity",
    "export",
    "export_all_tasks",
    "parity_texts",
    "write_merged",
]


def export(
    model: SentenceTransformer,
    task: str,
    folder: str | Path,
    *,
    kind: str,
    int8: bool = False,
    llama_cpp: str | Path | None = None,
    texts: Sequence[str] | None = None,
) -> list[Parity]:
    """Export one task to another engine, and compare the export with the model.

    ========  ===================================================================================
    merged    stock modules with the adapter in the weights, under class names that
              sentence-transformers 3 and 6, vLLM, TEI and infinity know; no st_jv5 needed
    onnx      ``model.onnx``: input_ids, attention_mask -> unit sentence_embedding
    openvino  ``openvino_model.xml``: the same graph
    gguf      ``model-f16.gguf``, by llama.cpp's own converter from the merged folder
    ========  ===================================================================================

    The folder is created when everything is written and compared, or not at all.

    Args:
        model: An st_jv5 model.
        task: An adapter, or ``"base"``.
        folder: Must be absent or empty.
        kind: One of :data:`KINDS`.
        int8: For onnx and openvino: also write a graph with int8 weights. Its loss is measured;
            there is no bound.
        llama_cpp: For gguf: a checkout of llama.cpp; None takes the environment variable
            ``LLAMA_CPP``.
        texts: Texts to compare on; None takes 200 texts in six languages that come with st_jv5.

    Returns:
        A :class:`~st_jv5.export.parity.Parity`, the comparison, for each file.

    Raises:
        ValueError: An argument is wrong, or the export differs from the model by more than its
            bound; then no folder is written.

    Example:
        >>> (parity,) = export(model, "retrieval", export_folder, kind="merged", texts=["a cat"])
        >>> parity.least >= 0.99999
        True
    """
    router = router_of(model)
    if kind not in KINDS:
        raise ValueError(unknown_name("kind of export", kind, KINDS, "st_jv5"))
    if task not in [*router.tasks, BASE]:
        raise ValueError(unknown_name("task", task, [*router.tasks, BASE], "this model"))
    if int8 and kind not in ("onnx", "openvino"):
        raise ValueError(f"int8 is for onnx and openvino, not for {kind}")
    texts = texts_to_compare(texts)
    if kind == "gguf":
        gguf.check_modules(model)
        checkout = gguf.find_llama_cpp(llama_cpp)
    else:
        check_installed(kind, int8)
    with whole_folder(folder) as partial:
        merged = write_merged(model, task, partial, kind=kind)
        if kind == "merged":
            named, vectors = source_vectors(model, task, texts)
            return [compare(kind, partial, vectors, merged_vectors(partial, named))]
        if kind == "gguf":
            return gguf.write(model, task, partial, checkout, texts)
        return graph.write(model, task, merged, partial, kind, int8, texts)


def export_all_tasks(
    model: SentenceTransformer,
    folder: str | Path,
    *,
    int8: bool = False,
    texts: Sequence[str] | None = None,
) -> list[Parity]:
    """Write all tasks as one ONNX graph, and compare what was written with the model.

    ``model.onnx``: input_ids and attention_mask ``(n, tokens)``, task ``(n,)`` -> unit
    sentence_embedding ``(n, D)``. It has the base's weights once. ``tasks.json`` lists the tasks,
    the base last, in the order of their numbers, each with its prompts. A batch of one task takes
    little longer than a graph of that task alone; one of several tasks copies an adapter for each
    row. OpenVINO reads the file, too.

    Args:
        model: An st_jv5 model with adapters.
        folder: Must be absent or empty.
        int8: Also ``model_int8.onnx``, the base's weights in int8; its loss is measured and bound
            by nothing.
        texts: To compare on; None takes 200 texts of six languages that come along.

    Returns:
        A comparison for each file.

    Raises:
        ValueError: Bad arguments, or the export differs from the model by more than its bound; the
            folder is then not written.

    Example:
        >>> (parity,) = export_all_tasks(model, export_folder, texts=["a cat"])
        >>> parity.least >= 0.9999
        True
    """
    all_tasks.task_names(model)
    texts = texts_to_compare(texts)
    check_installed("onnx", int8)
    with whole_folder(folder) as partial:
        write_merged(model, BASE, partial, kind="onnx")
        return graph.write_all_tasks(model, partial, int8, texts)


def texts_to_compare(texts: Sequence[str] | None) -> list[str]:
    """The given ones, or those that come along; an error for none."""
    texts = parity_texts() if texts is None else list(texts)
    if not texts:
        raise ValueError("no texts to compare on")
    return texts


def merged_vectors(folder: Path, named: Sequence[tuple[str, str]]) -> list[Array]:
    """Vectors by the stock modules in float32; prompts by name from the folder's own config."""
    stock = SentenceTransformer(str(folder), device="cpu").float()
    rows: dict[int, Array] = {}
    for name in dict.fromkeys(name for name, _ in named):
        chosen = [index for index, (own, _) in enumerate(named) if own == name]
        encoded = stock.encode([named[index][1] for index in chosen], prompt_name=name)
        rows |= dict(zip(chosen, encoded, strict=True))
    return [rows[index] for index in range(len(named))]
