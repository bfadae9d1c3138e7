"""How a base embeds by itself: its pooling and its prompts, where it says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from st_jv5.files import read_json, read_json_list
from st_jv5.folders.configs import check_modules, check_prompts
from st_jv5.modules.pooling import MODES, modes_of
from st_jv5.task_table import PROMPTS

POOLINGS = ("Pooling", "TokenPooling", "LastTokenPooling")
WITHOUT_WEIGHTS = ("Normalize", "MatryoshkaTruncate", "Dropout", "Rotation", "Heads")
"""Modules after the pooling that a student can do without: none changes what a vector says."""
DOCUMENT_NAMES = ("document", "passage", "corpus")
"""Names under which sentence-transformers looks for the prompt of documents."""


@dataclass(frozen=True)
class OwnWay:
    """What a base says of itself; a folder of plain transformers says nothing."""

    name: str
    """Name of the base, for messages."""
    modules: tuple[str, ...] = ()
    """Class names behind the backbone; none where the base says nothing."""
    pooling: Mapping[str, Any] | None = None
    """Config of its pooling."""
    own_prompts: Mapping[str, str] | None = None
    """Prompt name -> text."""

    @classmethod
    def of(cls, base: str | Path | SentenceTransformer) -> OwnWay:
        """Read it from a loaded model, a folder or the Hub."""
        if isinstance(base, SentenceTransformer):
            configs = [m.get_config_dict() for m in base if isinstance(m, Pooling)]
            kinds = tuple(type(module).__name__ for module in list(base)[1:])
            return cls("the base", kinds, next(iter(configs), None), base.prompts)
        listed = _find(base, "modules.json")
        if listed is None:
            return cls(str(base))
        check_modules(listed)
        classes: list[str] = []
        pooling = None
        for entry in read_json_list(listed)[1:]:
            classes.append(entry["type"].rpartition(".")[-1])
            if classes[-1] in POOLINGS and pooling is None:
                pooling = read_json(_needed(base, f"{entry['path']}/config.json"))
        told = _find(base, "config_sentence_transformers.json")
        prompts = check_prompts(told, read_json(told)) if told else {}
        return cls(str(base), tuple(classes), pooling, prompts)

    def pooling_mode(self) -> str:
        """One of :data:`MODES`; the last token where the base says nothing.

        Raises:
            ValueError: The base pools in a way that a student does not have.
        """
        if self.own_prompts is None:
            return "lasttoken"
        dropped = [kind for kind in self.modules if kind not in (*POOLINGS, *WITHOUT_WEIGHTS)]
        way_out = f"; pass pooling={', '.join(map(repr, MODES[:-1]))} or {MODES[-1]!r} to start "
        way_out += "from its backbone alone"
        if dropped:
            raise ValueError(
                f"{self.name} has {', '.join(dropped)} besides its pooling, which a student would "
                f"drop: its vectors would not be the base's{way_out}"
            )
        if self.pooling is None:
            raise ValueError(f"{self.name} has no pooling module{way_out}")
        modes = modes_of(self.pooling)
        if len(modes) > 1 or modes[0] not in MODES:
            raise ValueError(f"{self.name} pools by {' + '.join(modes)}{way_out}")
        if self.pooling.get("include_prompt") is False:
            raise ValueError(
                f"{self.name} pools by {modes[0]} without the prompt's tokens (include_prompt is "
                f"false){way_out}"
            )
        return modes[0]

    def prompts(self) -> dict[str, str]:
        """The base's prompts by name, none where it has none; the paper's where it says nothing."""
        if self.own_prompts is None:
            return dict(PROMPTS)
        own = {name: text for name, text in self.own_prompts.items() if text}
        document = next((own[name] for name in DOCUMENT_NAMES if name in own), "")
        return {"query": "", **own, "document": document}


def _find(base: str | Path, name: str) -> str | None:
    head, _, tail = name.rpartition("/")
    found: str | None = Transformer.load_file_path(str(base), tail, subfolder=head)
    return found


def _needed(base: str | Path, name: str) -> str:
    path = _find(base, name)
    if path is None:
        raise FileNotFoundError(f"{base} has no {name}")
    return path
