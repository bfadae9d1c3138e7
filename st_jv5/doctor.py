"""Show what this machine has, how a model runs on it, and what would be faster."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from st_jv5.adapters import merge_task, router_of
from st_jv5.choices import ENGINES
from st_jv5.encoding import encode
from st_jv5.engines.running import BFLOAT16, check_engine, keep_choice
from st_jv5.export.parity import Array, parity_texts
from st_jv5.jina import load_model
from st_jv5.machine.about import has_fast_bfloat16
from st_jv5.modules.merging import MergedAdapters, free_memory
from st_jv5.modules.padding import is_causal
from st_jv5.task_table import BASE

TEXTS = 64
ROUNDS = 3
LARGEST_LOSS = 0.005
"""Share of the score that a faster way may lose to be chosen."""
HALF_CHARACTERS = 150
"""Most of half a text, of those that are scored; a text has at least half as many."""


@dataclass(frozen=True)
class Probe:
    """One way to run a model, measured."""

    name: str
    texts_per_second: float
    least_cosine: float
    """The least cosine of its vectors with those of the model as it was loaded."""
    score: float
    """How well the first halves of real texts find their second halves (:func:`halves_score`)."""
    how: str
    """What a user writes."""

    def __str__(self) -> str:
        return (
            f"{self.name:14s} {self.texts_per_second:8.1f} texts/s   score {self.score:6.2f}   "
            f"least cosine {self.least_cosine:.5f}   {self.how}"
        )


def doctor(model: str | None = None, task: str | None = None, compiled: bool = False) -> list[str]:
    """Return lines about this machine; with a model, also measure several ways to run it.

    The fastest engine that loses at most 0.5% of the score is what
    :func:`encode(engine="auto") <st_jv5.encode>` takes from then on, on this machine.

    Args:
        model: Folder or Hub id of an st_jv5 model.
        task: The task to measure; None is the first.
        compiled: Also try torch.compile, which takes a minute.

    Example:
        >>> any(line.startswith("device: ") for line in doctor())
        True
    """
    return examine(model, task, compiled)[0]


def examine(
    model: str | None = None,
    task: str | None = None,
    compiled: bool = False,
    tell: Callable[[str], None] | None = None,
) -> tuple[list[str], list[Probe]]:
    """The lines of :func:`doctor`, each given as it is found, and what was measured."""
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if tell is not None:
            tell(line)

    for line in (*_versions(), *_device()):
        say(line)
    if model is None:
        say("name a model to measure the ways to run it: st-jv5 doctor MODEL")
        return lines, []
    loaded = load_model(model)
    router = router_of(loaded)
    name = router.resolve(task or next(iter(router.tasks), BASE)) or BASE
    for line in _model(loaded):
        say(line)
    texts = sorted(parity_texts()[:: 200 // TEXTS], key=len)
    say(
        f"task {name}, {len(texts)} real texts in six languages, median of {ROUNDS} runs; score: "
        f"how well half a text finds its other half, of 100:"
    )
    probes = []
    for one in probe(loaded, name, texts, compiled):
        probes.append(one)
        say(f"  {one}")
    best = choose(probes)
    told = "as it is"
    if best is not probes[0]:
        gain = best.texts_per_second / probes[0].texts_per_second
        cost = 100 * (1 - best.score / probes[0].score)
        told = f"{gain:.2f} times as fast as it is, at {cost:.2f}% of the score: {best.how}"
    say(f"fastest: {best.name}, {told}")
    if best.name in ENGINES and router.tasks:
        keep_choice(loaded, best.name, f"{best.name}: {told.partition(': ')[0]}")
        say('  engine="auto" takes it from now on')
    return lines, probes


def choose(probes: Sequence[Probe]) -> Probe:
    """The fastest that loses at most :data:`LARGEST_LOSS` of the first one's score."""
    able = [one for one in probes if one.score >= (1 - LARGEST_LOSS) * probes[0].score]
    return max(able, key=lambda one: one.texts_per_second)


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
    model: SentenceTransformer, task: str, texts: Sequence[str], compiled: bool = False
) -> Iterator[Probe]:
    """Measure the ways to run one task, the model as it was loaded first."""
    first, second = halves(parity_texts())
    expected = encode(model, texts, task=task)

    def measured(name: str, run: Callable[[Sequence[str]], Array], how: str) -> Probe:
        found, speed = _timed(lambda: run(texts))
        lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
        least = float(((expected * found).sum(axis=1) / lengths).min())
        return Probe(name, speed, least, halves_score(run(first), run(second)), how)

    for engine in ENGINES:
        if (engine == BFLOAT16 and model.dtype != torch.float32) or not _able(model, engine):
            continue
        how = f'st_jv5.encode(model, texts, task="{task}", engine="{engine}")'
        yield measured(engine, partial(encode, model, task=task, engine=engine), how)
    if compiled:
        stock: Any = merge_task(model, task)
        stock.compile(dynamic=True)
        how = f'st_jv5.merge_task(model, "{task}").compile(dynamic=True)'
        yield measured("torch.compile", partial(encode, stock), how)


def _able(model: SentenceTransformer, engine: str) -> bool:
    try:
        check_engine(model, engine)
    except ValueError:
        return False
    return True


def halves(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """First and second halves of the texts that are long enough, cut at a space if there is one.

    Example:
        >>> halves(["a cat " * 20, "short"])[0]
        ['a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat']
    """
    first, second = [], []
    for text in texts:
        text = text.strip()[: 2 * HALF_CHARACTERS]
        if len(text) >= HALF_CHARACTERS // 2:
            middle = text.find(" ", len(text) // 2) if " " in text[len(text) // 2 :] else -1
            middle = middle if middle > 0 else len(text) // 2
            first.append(text[:middle].strip())
            second.append(text[middle:].strip())
    return first, second


def halves_score(first: Array, second: Array) -> float:
    """Mean reciprocal rank, of 100, of each text's second half among all, by its first half.

    Args:
        first: Unit rows ``(n, D)``.
        second: Unit rows ``(n, D)`` of the same texts' second halves.

    Example:
        >>> halves_score(np.eye(3), np.eye(3))
        100.0
    """
    cosines = first @ second.T
    ranks = (cosines >= np.diag(cosines)[:, None]).sum(axis=1)
    return float(100 * (1 / ranks).mean())


def _timed(run: Callable[[], Array]) -> tuple[Array, float]:
    """Vectors, and texts per second; a first run warms up."""
    vectors = run()
    seconds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return vectors, len(vectors) / statistics.median(seconds)
