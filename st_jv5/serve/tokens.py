"""How many tokens texts have, counted beside the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer


class TokenCounter:
    """Counts with a tokenizer of its own: the model's keeps its truncation in shared state.

    Args:
        router: The first module of a model.

    Attributes:
        most: Tokens that the model sees of a text; None has no bound.
    """

    def __init__(self, router: Any) -> None:
        self._tokenizer = Tokenizer.from_str(router.tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._lower = bool(router.do_lower_case)
        self.most: int | None = router.max_seq_length

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, whole, with special tokens. The prompt is to be in front already."""
        given = [text.lower() for text in texts] if self._lower else list(texts)
        return [len(found.ids) for found in self._tokenizer.encode_batch_fast(given)]

    def text_of(self, ids: Sequence[int]) -> str | None:
        """The text of token ids without special ones; None if it would not have the same ids."""
        try:
            text = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        except (OverflowError, TypeError):  # beyond 32 bits, or below 0
            return None
        again: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return text if again == list(ids) else None
