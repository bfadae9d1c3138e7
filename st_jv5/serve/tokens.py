"""How many tokens texts have, counted beside the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer


class TokenCounter:
    """Counts with a tokenizer of its own: the model's keeps its truncation in shared state.

    Args:
        tokenizer: It is copied.
        most: Tokens that the model sees of a text; None has no bound.
        lower: Whether the model makes texts lower case first.
        special_tokens: Whether the model adds the tokenizer's special tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        most: int | None,
        lower: bool = False,
        special_tokens: bool = True,
    ) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._lower, self._special = lower, special_tokens
        self.most = most

    @classmethod
    def of(cls, router: Any) -> TokenCounter:
        """Counter of the tokens of a model, by its first module."""
        return cls(
            router.tokenizer.backend_tokenizer,
            most=router.max_seq_length,
            lower=bool(router.do_lower_case),
        )

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, whole, with special tokens. The prompt is to be in front already."""
        given = [text.lower() for text in texts] if self._lower else list(texts)
        found = self._tokenizer.encode_batch_fast(given, add_special_tokens=self._special)
        return [len(each.ids) for each in found]

    def text_of(self, ids: Sequence[int]) -> str | None:
        """The text of token ids without special ones; None if it would not have the same ids."""
        try:
            text = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        except (OverflowError, TypeError):  # beyond 32 bits, or below 0
            return None
        again: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return text if again == list(ids) else None
