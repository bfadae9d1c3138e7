"""How a text's token states become one vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

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

MODES = ("mean", "cls", "lasttoken")
"""The modes that a student may have: all engines that we export to know them."""


def modes_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The modes of a pooling config, in the new or the old keys; none named is the mean.

    Example:
        >>> modes_of({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
        ('cls',)
    """
    told = config.get("pooling_mode")
    if told is not None:
        modes = [told] if isinstance(told, str) else told
        if not isinstance(modes, list | tuple) or not all(isinstance(m, str) for m in modes):
            raise ValueError(f"pooling_mode must be a name or a list of names, not {told!r:.80}")
        return tuple(modes)
    return tuple(mode for key, mode in OLD_MODES.items() if config.get(key)) or ("mean",)


def is_last_token(path: str | Path) -> bool:
    """Whether a pooling config pools the last token, in the new or the old keys."""
    return Path(path).is_file() and modes_of(read_json(path)) == ("lasttoken",)


class TokenPooling(Pooling):
    """Pool a text's states: their mean, the first or the last; padding may be on either side.

    sentence-transformers' ``Pooling`` in one of :data:`MODES`; the tokens of a prompt are pooled,
    too. Its config also has the keys of sentence-transformers before 5.4: vLLM and TEI read only
    those, and would otherwise use mean pooling without a warning.

    Args:
        embedding_dimension: Width of the token embeddings.
        pooling_mode: ``"mean"``, ``"cls"`` (the first token) or ``"lasttoken"``.

    Example:
        >>> TokenPooling(384, "mean").pooling_mode
        'mean'
    """

    modes: ClassVar[tuple[str, ...]] = MODES

    def __init__(self, embedding_dimension: int, pooling_mode: str = "mean") -> None:
        super().__init__(embedding_dimension, pooling_mode=self._checked(pooling_mode))

    @classmethod
    def _checked(cls, mode: object) -> str:
        if not isinstance(mode, str) or mode not in cls.modes:
            known = " or ".join(map(repr, cls.modes))
            raise ValueError(f"{cls.__name__} has no pooling_mode {mode!r}; it must be {known}")
        return mode

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        config = super().load_config(*args, **kwargs)
        mode = cls._checked(config.get("pooling_mode"))
        return {"embedding_dimension": config["embedding_dimension"], "pooling_mode": mode}

    def get_config_dict(self) -> dict[str, Any]:
        old = {key: mode == self.pooling_mode for key, mode in OLD_MODES.items()}
        # vLLM takes the first key that is true for the mode, so include_prompt comes after.
        return {
            "word_embedding_dimension": self.embedding_dimension,
            **old,
            **super().get_config_dict(),
        }


class LastTokenPooling(TokenPooling):
    """Pool the hidden state of the last real token; padding may be left, right or none (flattened).

    This is :class:`TokenPooling` with ``"lasttoken"``, under the class name that saved models use.

    Args:
        embedding_dimension: Width of the token embeddings.

    Example:
        >>> LastTokenPooling(384).get_embedding_dimension()
        384
    """

    modes: ClassVar[tuple[str, ...]] = ("lasttoken",)

    def __init__(self, embedding_dimension: int, pooling_mode: str = "lasttoken") -> None:
        super().__init__(embedding_dimension, pooling_mode)


def pooling_module(embedding_dimension: int, mode: str) -> TokenPooling:
    """The module of a mode, under the class name that saved models carry."""
    kind = LastTokenPooling if mode == "lasttoken" else TokenPooling
    return kind(embedding_dimension, mode)


def pooling_mode(model: Iterable[Any]) -> str:
    """The mode of an st_jv5 model: ``"mean"``, ``"cls"`` or ``"lasttoken"``.

    Example:
        >>> pooling_mode(student)
        'mean'
    """
    (mode,) = (module.pooling_mode for module in model if isinstance(module, Pooling))
    return str(mode)
