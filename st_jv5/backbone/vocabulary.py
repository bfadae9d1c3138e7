"""A vocabulary cut to a corpus: embeddings are most of a small multilingual model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModel, AutoTokenizer

from st_jv5.files import read_json, write_json
from st_jv5.texts import check_texts

BLOCK = 1024
"""Texts that are tokenised at once."""

MODELS = ("WordPiece", "BPE", "Unigram")
"""Kinds of tokenizer whose vocabulary can be cut."""


def cut_vocabulary(folder: str | Path, texts: Iterable[str]) -> tuple[int, int]:
    """Remove the tokens that no text of a corpus needs from the folder of a stock model.

    Texts of the corpus keep exactly their tokens and vectors. In other texts, removed tokens are
    replaced by smaller ones: single characters (or bytes) are kept, and so are special and added
    tokens.

    Args:
        folder: Model and fast tokenizer, as ``save_pretrained`` writes them; changed in place.
        texts: The corpus, read once.

    Returns:
        Tokens before and after.

    Raises:
        ValueError: An empty corpus, or a tokenizer of another kind than WordPiece, BPE, Unigram.

    Example:
        >>> before, after = cut_vocabulary(stock_folder, ["a text of the corpus"])
        >>> after < before
        True
    """
    folder = Path(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json: only a fast tokenizer can be cut")
    words = read_json(folder / "tokenizer.json")
    kind = words["model"].get("type")
    if kind not in MODELS:
        raise ValueError(f"{folder}: a {kind} tokenizer cannot be cut, only {', '.join(MODELS)}")
    used: set[int] = set()
    unread = iter(texts)
    while block := list(itertools.islice(unread, BLOCK)):
        check_texts(block, " of a block")
        used.update(itertools.chain(*tokenizer(block, add_special_tokens=True)["input_ids"]))
    if not used:
        raise ValueError("the corpus is empty: name the texts whose tokens are kept")
    ids = tokenizer.get_vocab()
    used.update(token["id"] for token in words["added_tokens"])
    used.update(ids[name] for name in _always_kept(words["model"], ids))
    merges: list[Any] = []
    if kind == "BPE":
        merges = _merges_of(words["model"]["merges"], [n for n, i in ids.items() if i in used])
        used.update(ids[part] for pair in merges for part in (*pair, "".join(pair)))
    new_id = {old: new for new, old in enumerate(sorted(used))}
    _write_tokenizer(folder, words, new_id, merges)
    _write_model(folder, new_id)
    return len(ids), len(new_id)


def _always_kept(model: dict[str, Any], own: dict[str, int]) -> Iterator[str]:
    """Pieces that spell any text: single characters, within words, too."""
    prefix = model.get("continuing_subword_prefix") or ""
    for name in own:
        if len(name) == 1 or (prefix and len(name.removeprefix(prefix)) == 1):
            yield name
    if model["type"] == "Unigram":
        # What an unknown character costs is reckoned from the worst score.
        yield min(model["vocab"], key=lambda piece: piece[1])[0]


def _merges_of(merges: list[Any], tokens: Iterable[str]) -> list[tuple[str, str]]:
    """The merges, in order, by which BPE makes these tokens.

    With all merges that a word's own tokens need, and in their order, BPE takes the same steps.
    """
    pairs = [tuple(m) if not isinstance(m, str) else tuple(m.split(" ", 1)) for m in merges]
    rank = {pair: place for place, pair in enumerate(pairs)}
    needed: set[int] = set()
    for token in tokens:
        parts = list(token)
        while len(parts) > 1:
            places = [rank.get(pair, len(rank)) for pair in itertools.pairwise(parts)]
            best = min(places)
            if best == len(rank):  # a whole word that no merges make
                break
            needed.add(best)
            at = places.index(best)
            parts[at : at + 2] = ["".join(parts[at : at + 2])]
    return [(pairs[place][0], pairs[place][1]) for place in sorted(needed)]


def _write_tokenizer(
    folder: Path, words: dict[str, Any], new_id: dict[int, int], merges: list[Any]
) -> None:
    model = words["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [p for index, p in enumerate(model["vocab"]) if index in new_id]
        model["unk_id"] = new_id.get(model["unk_id"])
    else:
        kept = {name: new_id[old] for name, old in model["vocab"].items() if old in new_id}
        model["vocab"] = dict(sorted(kept.items(), key=lambda item: item[1]))
    if model["type"] == "BPE":
        model["merges"] = [list(pair) for pair in merges]
    for token in words["added_tokens"]:
        token["id"] = new_id[token["id"]]
    _renumber(words["post_processor"], new_id)
    write_json(folder / "tokenizer.json", words)
    settings = read_json(folder / "tokenizer_config.json")
    if decoder := settings.get("added_tokens_decoder"):
        settings["added_tokens_decoder"] = {
            str(new_id[int(old)]): token for old, token in decoder.items()
        }
        write_json(folder / "tokenizer_config.json", settings)
    for name in ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model"):
        (folder / name).unlink(missing_ok=True)  # tokenizer.json says it all


def _renumber(processor: dict[str, Any] | None, new_id: dict[int, int]) -> None:
    """Ids of the special tokens that a post-processor adds."""
    if processor is None:
        return
    for part in processor.get("processors", ()):
        _renumber(part, new_id)
    special = processor.get("special_tokens", {})
    for token in special.values():
        token["ids"] = [new_id[old] for old in token["ids"]]
    for end in ("sep", "cls"):
        if isinstance(processor.get(end), list):
            name, old = processor[end]
            processor[end] = [name, new_id[old]]


def _write_model(folder: Path, new_id: dict[int, int]) -> None:
    model = AutoModel.from_pretrained(folder, dtype="auto")
    config = model.config
    before = model.get_input_embeddings()
    padding = before.padding_idx
    if padding is not None and new_id[padding] != padding:
        raise ValueError(
            f"the padding token moves from {padding} to {new_id[padding]}, and {config.model_type} "
            f"counts positions from it"
        )
    cut = nn.Embedding(len(new_id), before.embedding_dim, padding, dtype=before.weight.dtype)
    cut.weight.data.copy_(before.weight.data[sorted(new_id)])
    model.set_input_embeddings(cut)
    config.vocab_size = len(new_id)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id",
                 "mask_token_id"):  # fmt: skip
        old = getattr(config, name, None)
        if isinstance(old, int):
            setattr(config, name, new_id.get(old))
    model.save_pretrained(folder)
