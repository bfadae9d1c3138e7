"""The model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template

TEMPLATE = Path(__file__).parent / "model_card.md"


def model_card(facts: Mapping[str, str]) -> str:
    """Fill the card's template.

    Args:
        facts: One text per placeholder of ``st_jv5/model_card.md``.

    Raises:
        ValueError: A placeholder has no fact; names it.

    Example:
        >>> model_card({"name": "mini"})
        Traceback (most recent call last):
        ValueError: the model card lacks: base, command, ...
    """
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    if missing := sorted(set(template.get_identifiers()) - set(facts)):
        raise ValueError(f"the model card lacks: {', '.join(missing)}")
    return template.substitute(facts)
