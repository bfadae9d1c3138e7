"""What this machine has, how a model runs on it, and what would be faster."""

from __future__ import annotations

import copy
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from st_jv5.adapters import merge_task, merged, router_of
from st_jv5.encoding import encode
from st_jv5.engines.graph import check_installed, start_onnx, start_openvino
from st_jv5.export import export
from st_jv5.export.graph import embed
from st_jv5.export.parity import Array, parity_texts, prompted
from st_jv5.jina import load_model
from st_jv5.modules.merging import MergedAdapters, free_memory
from st_jv5.modules.padding import is_causal
from st_jv5.task_table import BASE, DEFAULT_PROMPT_NAME

TEXTS = 64
ROUNDS = 3
LEAST_COSINE = 0.999
"""What a faster way must keep to be offered."""


@dataclass(frozen=True)
class Probe:
    """One way to run a model, measured."""

    name: str
    texts_per_second: float
    least_cosine: float
    """The least cosine of its vectors with those of the model as it was loaded."""
    how: str
    """What a user writes."""

    def __str__(self) -> str:
        return (
            f"{self.name:20s} {self.texts_per_second:8.1f} texts/s   least cosine "
            f"{self.least_cosine:.5f}   {self.how}"
        )


def doctor(model: str | None = None, task: str | None = None, compiled: bool = False) -> list[str]:
    """Lines that say what was found and what to change; with a model, ways to run it, measured.

    Args:
        model: A model of ours: folder or Hub id.
        task: The task to measure; None is the first.
        compiled: Also try torch.compile, which takes a minute.

    Example:
        >>> any(line.startswith("device: ") for line in doctor())
        True
    """
    lines = [*_versions(), *_device()]
    if model is None:
        return [*lines, "name a model to measure the ways to run it: st-jv5 doctor MODEL"]
    loaded = load_model(model)
    router = router_of(loaded)
    name = router.resolve(task or next(iter(router.tasks), BASE)) or BASE
    lines += _model(loaded)
    texts = sorted(parity_texts()[:: 200 // TEXTS], key=len)
    lines.append(f"task {name}, {len(texts)} real texts in six languages, median of {ROUNDS} runs:")
    probes = list(probe(loaded, name, texts, model, compiled))
    lines += [f"  {one}" for one in probes]
    able = [one for one in probes if one.least_cosine >= LEAST_COSINE]
    best = max(able, key=lambda one: one.texts_per_second)
    gain = best.texts_per_second / probes[0].texts_per_second
    told = "as it is" if best is probes[0] else f"{gain:.2f} times as fast as it is: {best.how}"
    return [*lines, f"fastest: {best.name}, {told}"]


# ---------------------------------------------------------------------------------- what is there


def _versions() -> Iterator[str]:
    names = ("torch", "transformers", "sentence-transformers", "peft", "st-jv5")
    found = ", ".join(f"{name} {version(name)}" for name in names)
    yield f"versions: python {platform.python_version()}, {found}"


def _device() -> Iterator[str]:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.device("cuda", index)
            about = torch.cuda.get_device_properties(device)
            free = free_memory(device) / 2**30
            yield f"device: {about.name}, {free:.1f} of {about.total_memory / 2**30:.1f} GiB free"
        if find_spec("flash_attn") is None:
            yield (
                "  to change: flash-attn is not installed; with it and "
                'model_kwargs={"attn_implementation": "flash_attention_2"} no padding is computed'
            )
        return
    if torch.backends.mps.is_available():
        yield f"device: mps, {free_memory(torch.device('cpu')) / 2**30:.1f} GiB free"
        return
    cores, threads = usable_cores(), torch.get_num_threads()
    kind = torch.backends.cpu.get_cpu_capability()
    free = free_memory(torch.device("cpu")) / 2**30
    yield f"device: cpu ({kind}), {cores} cores, {threads} threads, {free:.1f} GiB free"
    if threads != cores:
        told = os.environ.get("OMP_NUM_THREADS")
        why = f" (OMP_NUM_THREADS={told})" if told else ""
        yield (
            f"  to change: {threads} threads{why} on {cores} cores; set OMP_NUM_THREADS={cores}, "
            f"unless other processes share them"
        )
    if has_fast_bfloat16(torch.device("cpu")):
        yield "  this CPU multiplies bfloat16 in hardware"


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a GPU or CPU multiplies bfloat16 in hardware.

    ``torch.cuda.is_bf16_supported`` says yes of older GPUs, too, which emulate it slowly.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _model(model: SentenceTransformer) -> Iterator[str]:
    router = router_of(model)
    dtype = str(model.dtype).removeprefix("torch.")
    kernel = getattr(router.model.config, "_attn_implementation", "unknown")
    unmasked = kernel == "sdpa" and is_causal(router.model)
    if unmasked and router.tokenizer.padding_side == "right":
        kernel += " without a mask (causal, padded on the right)"
    yield (
        f"model: {type(router.model).__name__}, {dtype} on {model.device}, attention {kernel}, "
        f"texts cut at {model.max_seq_length} tokens, adapters {', '.join(router.tasks) or 'none'}"
    )
    if kernel == "eager":
        yield '  to change: model_kwargs={"attn_implementation": "sdpa"} is faster than eager'
    on_gpu = model.device.type == "cuda"
    if on_gpu and model.dtype == torch.float32 and has_fast_bfloat16(model.device):
        yield '  to change: model_kwargs={"dtype": "bfloat16"} is several times faster on a GPU'
    size = sum(layer.get_base_layer().weight.nbytes for _, layer in router.lora_layers())
    if size:
        fits = int(free_memory(model.device) * MergedAdapters.FREE_SHARE / size)
        yield (
            f"  a merged adapter takes {size / 2**20:.0f} MiB; "
            + ("they fit" if fits else "none fits: model[0].merging.most = 1 allows one")
        )


# -------------------------------------------------------------------------------- what is measured


def probe(
    model: SentenceTransformer,
    task: str,
    texts: Sequence[str],
    name: str = "model",
    compiled: bool = False,
) -> Iterator[Probe]:
    """Measure the ways to run one task, the model as it was loaded first."""
    dtype = str(model.dtype).removeprefix("torch.")
    with merged(model, task):
        expected, speed = _timed(lambda: encode(model, texts, task=task))
    yield Probe(f"torch {dtype}", speed, 1.0, f'SentenceTransformer("{name}")')

    def measured(what: str, run: Callable[[], Array], how: str) -> Probe:
        found, speed = _timed(run)
        lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
        least = float(((expected * found).sum(axis=1) / lengths).min())
        return Probe(what, speed, least, how)

    if model.dtype == torch.float32:
        half = copy.deepcopy(model).to(torch.bfloat16)
        how = f'SentenceTransformer("{name}", model_kwargs={{"dtype": "bfloat16"}})'
        with merged(half, task):
            yield measured("torch bfloat16", lambda: encode(half, texts, task=task), how)
        del half
    if compiled:
        stock: Any = merge_task(model, task)
        stock.compile(dynamic=True)
        how = f'st_jv5.merge_task(model, "{task}").compile(dynamic=True)'
        yield measured("torch.compile", lambda: encode(stock, texts), how)
    if model.device.type != "cpu" or task not in router_of(model).tasks:
        return
    for kind, start in (("onnx", start_onnx), ("openvino", start_openvino)):
        try:
            check_installed(kind, int8=False)
        except ValueError:
            continue
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / kind
            export(model, task, folder, kind=kind, texts=texts[:4])
            file = "model.onnx" if kind == "onnx" else "openvino_model.xml"
            run = start(folder / file)
            given = prompted(folder, [(DEFAULT_PROMPT_NAME, text) for text in texts])
            how = f"st-jv5 export {name} {kind} --task {task} --to {kind}"
            yield measured(kind, partial(embed, run, folder, given), how)


def _timed(run: Callable[[], Array]) -> tuple[Array, float]:
    """Vectors, and texts per second; a first run warms up."""
    vectors = run()
    seconds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return vectors, len(vectors) / statistics.median(seconds)
