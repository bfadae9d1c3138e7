"""Checks that a model folder must pass before it is published."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import metadata_load
from safetensors import safe_open
from sentence_transformers import SentenceTransformer

from st_jv5.adapters import router_of
from st_jv5.encoding import encode
from st_jv5.export.parity import Array, parity_texts
from st_jv5.files import read_json
from st_jv5.folders.trust import check_folder, contents_of
from st_jv5.modules.adapter_router import SETTINGS_FILE, AdapterRouter
from st_jv5.task_table import BASE

PLACES = (
    "home|root|tmp|Users|mnt|media|var|opt|work|workspace|content|scratch|data|srv|nfs|Volumes"
    "|kaggle|private|lustre|gpfs|beegfs|fsx|efs|shared|projects?|cluster|storage|dbfs|teamspace"
    "|notebooks|etc|usr|run|proc"
)
"""First parts of paths on people's machines."""

ABSOLUTE = re.compile(
    rf"file:/+[\w.-]|(?<![\w./])/(?:{PLACES})/[\w.-]"
    r"|(?<!\w)[A-Za-z]:[\\/]+[\w.-]|(?<![\w/])~\w*/[\w.-]"
)
"""A path of somebody's machine."""

SECRETS = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}"
    r"|\bgithub_pat_\w{20,}|\bglpat-[\w-]{20,}|\b(AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\bAIza[\w-]{35}|\bxox[abprs]-[\w-]{10,}|\bnpm_[A-Za-z0-9]{36}|\bpypi-[\w-]{40,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
)
"""Keys by the forms that their makers give them, so that such a scan can find them."""

WORDS = ("tokenizer.json", "vocab.txt", "merges.txt", "vocab.json")
"""Files whose strings are a vocabulary, in which a path is a token."""

ALIKE = 1e-6
"""1 - cosine below which two texts have one vector."""

TEXTS = 12
TOLERANCE = {torch.float32: (1e-6, 1e-4), torch.float64: (1e-6, 1e-4)}
"""dtype -> what 1 - cosine of the same text, and a length beside 1, may come to."""
HALF = (1e-3, 1e-2)
"""The two tolerances of ``TOLERANCE`` for the half precisions."""


def self_test(folder: str | Path) -> list[str]:
    """Load a model folder and check it.

    First the files: :func:`~st_jv5.folders.trust.check_folder`; no path of this machine and no key
    in them; licences of base, teacher and data are named, and agree with the model card; the
    weights are those of the base that is named. Then every task: vectors are finite, have unit
    length, differ for different texts, and are the same alone, in a batch and with padding on
    either side; long inputs are cut, with their EOS kept if one is appended; vectors can be cut.

    Returns:
        A line for each check.

    Raises:
        ValueError: A check failed; the message names the file or the number.

    Example:
        >>> self_test("nowhere")
        Traceback (most recent call last):
        ValueError: nowhere is not a folder
    """
    folder = Path(folder)
    found = check_folder(folder)
    lines = [f"files: {len(found.members)}, no pickle, no code, no path that leaves the folder"]
    if found.others:
        lines.append(f"left out, not part of a model: {', '.join(found.others)}")
    check_private(folder)
    lines.append("text: no path of this machine, no key")
    model = SentenceTransformer(str(folder))
    router = router_of(model)
    lines.append(_check_licenses(folder, router))
    lines.append(_check_base(folder, router))
    for task in [*router.tasks, BASE]:
        lines.append(f"{task}: {', '.join(_try_task(model, task))}")
    return lines


def check_private(folder: Path) -> None:
    """No text that would be published names a path of this machine or holds a key.

    Texts are the configs, the card, the licence, and the metadata of weights.

    Raises:
        ValueError: Names the file and the place; of a key its first characters alone.
    """
    for name in contents_of(folder).members:
        path = folder / name
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                text = "\n".join((file.metadata() or {}).values())
        elif path.suffix == ".model":
            continue
        else:
            text = path.read_text(encoding="utf-8", errors="replace")
        if found := SECRETS.search(text):
            raise ValueError(f"{path} holds a key, {found[0][:8]}...; remove it, and revoke it")
        if path.name not in WORDS and (found := ABSOLUTE.search(text)):
            place = text[found.start() :][:60]
            raise ValueError(f"{path} has a path of this machine: {place!r}")


def _check_base(folder: Path, router: AdapterRouter) -> str:
    recorded = read_json(folder / SETTINGS_FILE)["base_sha256"]
    router._base_sha256 = None  # of the weights themselves
    if router.base_sha256() == recorded:
        return f"weights: the base that {SETTINGS_FILE} names"
    if router.model.dtype not in TOLERANCE:
        return f"weights: {router.model.dtype}; a rounded base cannot be held against its hash"
    raise ValueError(f"{folder}/{SETTINGS_FILE} names the base {recorded[:12]}, the weights differ")


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
    same = np.argwhere(np.triu(1 - together.astype(np.float64) @ together.T < ALIKE, k=1))
    if len(same):
        one, other = same[0]
        raise ValueError(
            f"{task}: the texts {texts[one][:40]!r} and {texts[other][:40]!r} have the same "
            f"vector; tokenizer.json does not distinguish words, or the weights do not"
        )
    yield "different texts apart"
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
