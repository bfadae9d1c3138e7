"""What a model folder must pass before anyone else gets it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import metadata_load
from sentence_transformers import SentenceTransformer

from st_jv5.adapters import router_of
from st_jv5.encoding import encode
from st_jv5.export.parity import Array, parity_texts
from st_jv5.files import read_json
from st_jv5.modules.adapter_router import SETTINGS_FILE, AdapterRouter
from st_jv5.tasks import BASE
from st_jv5.trust import check_folder

ABSOLUTE = re.compile(
    r"(?<![\w.:/])(?:/(?:home|root|tmp|Users|mnt|media|var|opt|work|workspace|content|scratch|data)/"
    r"[\w.-]|[A-Za-z]:\\\\?[\w.-]|~/[\w.-])"
)
"""A path of somebody's machine."""

WORDS = ("tokenizer.json", "vocab.txt", "merges.txt", "vocab.json")
"""Files whose strings are a vocabulary."""

TEXTS = 12
TOLERANCE = {torch.float32: (1e-6, 1e-4), torch.float64: (1e-6, 1e-4)}
"""dtype -> what 1 - cosine of the same text, and a length beside 1, may come to."""
HALF = (1e-3, 1e-2)
"""The same for the half precisions."""


def self_test(folder: str | Path) -> list[str]:
    """Load a folder as its users will, and try what they will.

    The files (:func:`~st_jv5.trust.check_folder`, no path of this machine, licences of base,
    teacher and data stated and the card's in accord), then for every task: finite unit vectors, one
    text alone as in a batch, padding on either side, a long input cut with its EOS kept where
    one is appended, cut dims.

    Returns:
        A line for each check.

    Raises:
        ValueError: The first check that fails, with the file or the number.

    Example:
        >>> self_test("nowhere")
        Traceback (most recent call last):
        ValueError: nowhere is not a folder
    """
    folder = Path(folder)
    check_folder(folder)
    lines = ["files: no pickle, no code, no path that leaves the folder"]
    for path in sorted(folder.rglob("*")):
        told = path.suffix in (".json", ".md", ".txt", ".jinja") and path.name not in WORDS
        if told and (found := ABSOLUTE.search(path.read_text(encoding="utf-8"))):
            place = found.string[found.start() :][:60]
            raise ValueError(f"{path} has a path of this machine: {place!r}")
    lines.append("paths: none of this machine")
    model = SentenceTransformer(str(folder))
    router = router_of(model)
    lines.append(_check_licenses(folder, router))
    lines.append(_check_base(folder, router))
    for task in [*router.tasks, BASE]:
        lines.append(f"{task}: {', '.join(_try_task(model, task))}")
    return lines


def _check_base(folder: Path, router: AdapterRouter) -> str:
    told = read_json(folder / SETTINGS_FILE)["base_sha256"]
    router._base_sha256 = None  # of the weights themselves
    if router.base_sha256() == told:
        return f"weights: the base that {SETTINGS_FILE} names"
    if router.model.dtype not in TOLERANCE:
        return f"weights: {router.model.dtype}; a rounded base cannot be held against its hash"
    raise ValueError(f"{folder}/{SETTINGS_FILE} names the base {told[:12]}, the weights differ")


def _check_licenses(folder: Path, router: AdapterRouter) -> str:
    card = folder / "README.md"
    told = (metadata_load(card) if card.is_file() else None) or {}
    license_ = str(told.get("license") or "")
    if not license_ or license_ == "unknown":
        raise ValueError(f"{card} names no license in its front matter; write 'license: ...' there")
    licenses = router.licenses
    licenses.check_card(license_)
    for kind in ("base", "teacher", "data"):
        named = getattr(licenses, kind)
        unknown = [name for name, its in named.items() if its in ("", "unknown")]
        if not named or unknown:
            what = f"of {unknown[0]!r} is unknown" if unknown else "is not stated"
            raise ValueError(
                f"{folder}/{SETTINGS_FILE}: the licence of the {kind} {what}; set "
                f"model[0].licenses.{kind}[name] = licence and save, or name it in the recipe"
            )
    return f"licences: base, teacher and data stated; the card says {license_}"


def _try_task(model: SentenceTransformer, task: str) -> Iterator[str]:
    texts = parity_texts()[:: 200 // TEXTS]
    tokenizer = model.tokenizer
    limit, near = TOLERANCE.get(model.dtype, HALF)
    together = encode(model, texts, task=task)
    lengths = np.linalg.norm(together, axis=1)
    if not np.allclose(lengths, 1, rtol=0, atol=near):  # also where one is no number
        raise ValueError(f"{task}: lengths {lengths.min():.4f} to {lengths.max():.4f}, not 1")
    yield "unit vectors"
    alone = np.concatenate([encode(model, [text], task=task) for text in texts])
    _same(alone, together, limit, f"{task}: a text alone and in a batch")
    yield "batch of 1"
    side = tokenizer.padding_side
    try:
        for tokenizer.padding_side in ("left", "right"):
            what = f"{task}: padding on the {tokenizer.padding_side}"
            _same(encode(model, texts, task=task), together, limit, what)
    finally:
        tokenizer.padding_side = side
    yield "padding left and right"
    router = router_of(model)
    if router.append_eos:
        ids = model.preprocess(["word " * 4 * model.max_seq_length], task=task)["input_ids"][0]
        ends = (tokenizer.eos_token_id, tokenizer.sep_token_id)
        if len(ids) != model.max_seq_length or int(ids[-1]) not in ends:
            raise ValueError(
                f"{task}: a long text becomes {len(ids)} tokens that end with {int(ids[-1])}, not "
                f"{model.max_seq_length} that end with EOS or SEP {ends}"
            )
        yield "long input ends with EOS"
    for dim in router.matryoshka_dims:
        cut = np.linalg.norm(encode(model, texts, task=task, dim=dim), axis=1)
        if not np.allclose(cut, 1, rtol=0, atol=near):
            raise ValueError(
                f"{task}: lengths at {dim} dims are {cut.min():.4f} to {cut.max():.4f}"
            )
    yield f"unit at {', '.join(map(str, router.matryoshka_dims)) or 'full width'}"


def _same(one: Array, other: Array, limit: float, what: str) -> None:
    apart = 1 - (one.astype(np.float64) * other).sum(axis=1) / (
        np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    )
    if not apart.max() <= limit:
        raise ValueError(f"{what}: vectors differ, 1 - cosine is {apart.max():.2e} of {limit:.0e}")
