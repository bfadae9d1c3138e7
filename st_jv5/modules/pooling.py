"""Last-token pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentence_transformers.sentence_transformer.modules import Pooling

from st_jv5.files import read_json

OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def is_last_token(path: str | Path) -> bool:
    """Whether a pooling config says so, in the new or the old keys."""
    config = read_json(path) if Path(path).is_file() else {}
    return bool(config.get("pooling_mode") == "lasttoken" or config.get("pooling_mode_lasttoken"))


class LastTokenPooling(Pooling):
    """The hidden state of the last real token, for left, right and flattened padding alike.

    The host's ``Pooling`` fixed to ``"lasttoken"``. Its config also carries the keys of
    sentence-transformers before 5.4, because vLLM and TEI read only those and would otherwise
    mean-pool without a word.

    Args:
        embedding_dimension: Width of the token embeddings.

    Example:
        >>> LastTokenPooling(384).get_embedding_dimension()
        384
    """

    def __init__(self, embedding_dimension: int) -> None:
        super().__init__(embedding_dimension, pooling_mode="lasttoken")

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        config = super().load_config(*args, **kwargs)
        if config.get("pooling_mode") != "lasttoken":
            raise ValueError(
                f"LastTokenPooling cannot load a config of pooling_mode "
                f"{config.get('pooling_mode')!r}; it must be 'lasttoken'"
            )
        return {"embedding_dimension": config["embedding_dimension"]}

    def get_config_dict(self) -> dict[str, Any]:
        old = {key: mode == "lasttoken" for key, mode in OLD_MODES.items()}
        # vLLM takes the first key that is true for the mode, so include_prompt comes after.
        return {
            "word_embedding_dimension": self.embedding_dimension,
            **old,
            **super().get_config_dict(),
        }
