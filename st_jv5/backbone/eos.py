"""The end-of-sequence token that last-token pooling reads, and how a tokenizer is written."""

from __future__ import annotations

from pathlib import Path

from tokenizers.processors import Sequence, TemplateProcessing
from transformers import PreTrainedTokenizerBase

from st_jv5.files import read_json, write_json

OF_THIS_RUN = (
    "is_local", "local_files_only", "max_length", "pad_to_multiple_of", "pad_token_type_id",
    "stride", "truncation_strategy", "backend", "auto_map",
)  # fmt: skip
"""Keys of tokenizer_config.json about how the tokenizer was loaded and last called."""


def append_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a fast tokenizer end every input with EOS or SEP; truncation then keeps it.

    Done in the tokenizer's own post-processor, so that ``tokenizer.json`` says it to other engines
    too (transformers 5 ignores ``add_eos_token``). A tokenizer that already ends its inputs so is
    left as it is.

    Raises:
        ValueError: The tokenizer has neither token.
    """
    ends = [i for i in (tokenizer.eos_token_id, tokenizer.sep_token_id) if i is not None]
    if not ends:
        raise ValueError(
            f"{type(tokenizer).__name__} has neither an EOS nor a SEP token to append; give it "
            f"one, or pass append_eos=False"
        )
    if tokenizer("a")["input_ids"][-1] in ends:
        return
    token = tokenizer.convert_ids_to_tokens(ends[0])
    ending = TemplateProcessing(
        single=f"$A {token}", pair=f"$A {token} $B:1 {token}:1", special_tokens=[(token, ends[0])]
    )
    backend = tokenizer.backend_tokenizer
    before = backend.post_processor
    backend.post_processor = Sequence([before, ending]) if before else ending
    if tokenizer("a")["input_ids"][-1] != ends[0]:
        raise ValueError(f"{type(tokenizer).__name__} cannot be made to append {token!r}")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write a tokenizer without what its last call and its loading have left in it."""
    tokenizer.save_pretrained(folder)
    words, settings = Path(folder) / "tokenizer.json", Path(folder) / "tokenizer_config.json"
    if words.exists():
        write_json(words, {**read_json(words), "truncation": None, "padding": None})
    if settings.exists():
        kept = {k: v for k, v in read_json(settings).items() if k not in OF_THIS_RUN}
        write_json(settings, kept)
