"""The licences of what a model was made of; they are saved with its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

JINA_LICENSE = "cc-by-nc-4.0"
"""Licence of the published jina-embeddings-v5-text weights."""

_shown: set[tuple[str, str]] = set()


@dataclass
class Licenses:
    """Name -> licence (the Hub's ids: ``apache-2.0``, ``cc-by-nc-4.0``) for each kind of source.

    Example:
        >>> licenses = Licenses(base={"some/model": "cc-by-nc-4.0"})
        >>> licenses.binding()
        'cc-by-nc-4.0'
    """

    base: dict[str, str] = field(default_factory=dict)
    """Licences of the backbone's weights before training."""
    teacher: dict[str, str] = field(default_factory=dict)
    """Licences of the models whose vectors were distilled."""
    data: dict[str, str] = field(default_factory=dict)
    """The texts."""

    @classmethod
    def read(cls, stored: Mapping[str, Any], source: str | Path) -> Licenses:
        """Read from ``st_jv5.json``; an error names ``source``."""
        known = [each.name for each in fields(cls)]
        good = isinstance(stored, Mapping) and all(
            kind in known
            and isinstance(named, Mapping)
            and all(isinstance(license, str) for license in named.values())
            for kind, named in stored.items()
        )
        if not good:
            raise ValueError(f"{source}: licenses must be texts by name under {', '.join(known)}")
        return cls(**{kind: dict(named) for kind, named in stored.items()})

    def binding(self) -> str | None:
        """The licence that the weights must keep: the base's, if it forbids commercial use."""
        return next((license for license in self.base.values() if is_noncommercial(license)), None)

    def check_card(self, license: str) -> None:
        """An error if a card names another license than the weights have to keep."""
        if (binding := self.binding()) and license != binding:
            names = ", ".join(self.base)
            raise ValueError(
                f"the weights of {names} are {binding} and stay so; the card says {license!r}: "
                f"write 'license: {binding}' into the front matter of README.md"
            )


def is_noncommercial(license: str) -> bool:
    """Whether a license bars commercial use, by its id."""
    return "nc" in license.lower().split("-")


def show_licenses(licenses: Licenses, source: str | Path) -> None:
    """Log, once per process and source, that weights are not for commercial use."""
    for name, license in licenses.base.items():
        if is_noncommercial(license) and (name, license) not in _shown:
            _shown.add((name, license))
            logger.warning(
                "%s: the weights of %s are %s, not for commercial use; the license goes along "
                "with every copy, merged or fine-tuned",
                source,
                name,
                license,
            )
