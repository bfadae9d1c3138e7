"""The model card: what others wrote stands in it as words, never as YAML, markup or code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template

from huggingface_hub import ModelCardData

TEMPLATE = Path(__file__).parent / "model_card.md"

BLOCKS = (
    *("data", "phases", "scores", "about_scores", "curves", "licenses", "limits", "prompts"),
    *("advice", "origin", "teacher", "usage"),
)
"""Facts of several lines, or with marks of their own; all others are words."""

MOST_CHARACTERS = 500
"""Most characters of a word, such as a model's name."""


def model_card(facts: Mapping[str, str], metadata: ModelCardData) -> str:
    """Fill the card's template.

    Args:
        facts: One text per placeholder of ``st_jv5/folders/model_card.md``. Markup in them is
            shown, not followed; tables may stand in those of several lines.
        metadata: The front matter: licence, base, scores (``eval_results``) and so on.

    Raises:
        ValueError: A placeholder has no fact; names it.

    Example:
        >>> from huggingface_hub import ModelCardData
        >>> model_card({"name": "mini"}, ModelCardData(license="mit"))
        Traceback (most recent call last):
        ValueError: the model card lacks: about_scores, advice, ...
    """
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    if missing := sorted(set(template.get_identifiers()) - {"metadata", *facts}):
        raise ValueError(f"the model card lacks: {', '.join(missing)}")
    safe = {n: without_html(t) if n in BLOCKS else as_words(t) for n, t in facts.items()}
    return template.substitute(safe, metadata=metadata.to_yaml())


def as_words(text: object) -> str:
    """A text as one line in which no character marks anything up.

    Example:
        >>> as_words("a/b\\nlicense: <b>mit</b> | x")
        'a/b license: &lt;b>mit&lt;/b> &#124; x'
    """
    line = " ".join(str(text).split())[:MOST_CHARACTERS]
    return without_html(line).replace("|", "&#124;").replace("`", "'").replace("](", "] (")


def as_code(text: str) -> str:
    """A text between backticks, on one line, spaces kept.

    Example:
        >>> as_code("Query: ")
        '`Query: `'
    """
    line = "".join(" " if c in "\r\n\t" else c for c in text if c.isprintable() or c in "\r\n\t")
    return f"`{line[:MOST_CHARACTERS].replace('`', chr(39))}`"


def without_html(text: str) -> str:
    """A text whose tags are shown and not followed."""
    return text.replace("<", "&lt;")
