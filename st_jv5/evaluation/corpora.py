"""The text under training/data: rows, pairs and labels, for training and for the local tasks alike.

``split`` is fixed in the files: train only on train, choose on validation, report on test.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow.parquet as pq

Page = TypeVar("Page", bound=Hashable)

DATA = Path(os.environ.get("ST_JV5_DATA", Path(__file__).parents[2] / "training" / "data"))
"""The text; it is in the repository alone, no package has it."""


def is_here() -> bool:
    """Whether the text of the local tasks lies on this disk."""
    return DATA.is_dir() and any(DATA.glob("*.parquet"))


MOST_MISSED = 10
"""Turns in a row, of some thousand draws each, after which a kind of pair counts as used up."""


@cache
def rows(name: str, split: str, lang: str = "en") -> list[dict[str, Any]]:
    """The rows of one data file, split and language; training/data/README.md lists them."""
    if not (DATA / f"{name}.parquet").is_file():
        raise FileNotFoundError(
            f"no {name}.parquet in {DATA}: the text of recipes and local tasks is in training/data "
            f"of the repository, not in the package; set ST_JV5_DATA to such a folder"
        )
    table = pq.read_table(DATA / f"{name}.parquet").to_pylist()
    return [row for row in table if row["split"] == split and row.get("lang", "en") == lang]


@dataclass(frozen=True)
class LongDocument(Generic[Page]):
    """Several pages in one text."""

    text: str
    offsets: dict[Page, int]
    """Page -> where it begins, in characters."""


def joined_pages(pages: list[dict[str, Any]], least: int, seed: int) -> list[LongDocument[str]]:
    """Join pages in random order into texts of at least so many characters.

    Each page stands in one document, without its title, an empty line after the one before. What is
    left over at the end goes to the last document.
    """
    shuffled = random.Random(seed).sample(pages, len(pages))
    return list(joined(((page["page"], page["body"]) for page in shuffled), least))


def joined(pages: Iterable[tuple[Page, str]], least: int) -> Iterator[LongDocument[Page]]:
    """:func:`joined_pages` of (page, body) in their order; two documents at most are held."""
    whole: LongDocument[Page] | None = None
    text, offsets = "", dict[Page, int]()
    for page, body in pages:
        begin = len(text) + 2 if text else 0
        text = f"{text}\n\n{body}" if text else body
        offsets[page] = begin
        if len(text) >= least:
            if whole is not None:
                yield whole
            whole = LongDocument(text, offsets)
            text, offsets = "", {}
    if text and whole is not None:
        begin = len(whole.text) + 2
        moved = {page: begin + offset for page, offset in offsets.items()}
        yield LongDocument(f"{whole.text}\n\n{text}", {**whole.offsets, **moved})
    elif whole is not None:
        yield whole
    elif text:
        yield LongDocument(text, offsets)


def parallel_openings(split: str, lang: str, most: int) -> list[tuple[str, str]]:
    """The first ``most`` characters of every help page that is there in English and ``lang``.

    Pages whose English opening another page has too are left out.
    """
    english = {row["page"]: row["body"][:most] for row in rows("office_help", split)}
    other = {row["page"]: row["body"][:most] for row in rows("office_help", split, lang)}
    pairs = [(text, other[page]) for page, text in english.items() if page in other]
    one, two = (Counter(pair[side] for pair in pairs) for side in (0, 1))
    return [pair for pair in pairs if one[pair[0]] == 1 == two[pair[1]]]


def path_similarity(one: dict[str, Any], other: dict[str, Any]) -> float:
    """WordNet's path similarity, 1 / (1 + edges between the synsets), over their hypernym paths.

    0 where the two have no common ancestor.
    """
    path = [one["synset"], *one["hypernym_path"].split()]
    depth = {
        synset: steps
        for steps, synset in enumerate([other["synset"], *other["hypernym_path"].split()])
    }
    edges = [steps + depth[synset] for steps, synset in enumerate(path) if synset in depth]
    return 1 / (1 + min(edges)) if edges else 0.0


def similarity_pairs(synsets: list[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """Gloss pairs over the whole range of path similarity, never a gloss with itself or a repeat.

    A third are synsets under one parent, a third under one grandparent, a third any two of a part
    of speech. A kind of which draw after draw finds no new pair is left out from there on, so small
    splits have fewer near pairs than a third, and fewer than ``count`` where no kind has more.
    """
    draw = random.Random(seed)
    pool = [row for row in synsets if row["hypernym_path"]]
    kin: list[dict[str, list[dict[str, Any]]]] = [
        defaultdict(list),
        defaultdict(list),
        defaultdict(list),
    ]
    for row in pool:
        for level, key in enumerate(_kin_of(row)):
            kin[level][key].append(row)
    pairs: list[dict[str, Any]] = []
    seen: set[frozenset[str]] = set()
    turn = 0
    missed = [0] * len(kin)  # turns in a row that found nothing
    while pool and len(pairs) < count and min(missed) < MOST_MISSED:
        level = turn % len(kin)
        if missed[level] >= MOST_MISSED:
            turn += 1
            continue
        first = draw.choice(pool)
        second = draw.choice(kin[level][_kin_of(first)[level]])
        glosses = frozenset((first["gloss"], second["gloss"]))
        if len(glosses) < 2 or glosses in seen:
            if draw.random() >= 0.999:  # enough draws: the next kind's turn
                turn += 1
                missed[level] += 1
            continue
        seen.add(glosses)
        turn += 1
        missed[level] = 0
        pairs.append(
            {
                "sentence1": first["gloss"],
                "sentence2": second["gloss"],
                "score": path_similarity(first, second),
            }
        )
    return pairs


def _kin_of(synset: dict[str, Any]) -> tuple[str, str, str]:
    """Parent, grandparent (the parent, where there is none) and part of speech."""
    path = synset["hypernym_path"].split()
    return path[0], path[min(1, len(path) - 1)], synset["synset"][0]


def example_pairs(synsets: list[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """Gloss and example of one synset (1), or the example of another of its category (0)."""
    draw = random.Random(seed)
    with_example = [row for row in synsets if row["example"]]
    by_category: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in with_example:
        by_category[row["category"]].append(row)
    pairs = []
    for row in draw.sample(with_example, len(with_example)):
        others = by_category[row["category"]]
        other = draw.choice(others)
        if other["gloss"] == row["gloss"] or other["example"] == row["example"]:
            continue
        pairs.append({"sentence1": row["gloss"], "sentence2": row["example"], "labels": 1})
        pairs.append({"sentence1": row["gloss"], "sentence2": other["example"], "labels": 0})
        if len(pairs) >= count:
            break
    return pairs


NO_SECTIONS = re.compile(
    r"cli-mono|debug|devel|doc|gnu-r|golang|gnustep|haskell|interpreters|introspection|java|"
    r"javascript|kernel|libdevel|libs|lisp|localization|metapackages|ocaml|oldlibs|perl|php|"
    r"python|ruby|rust|tasks|tex|zope"
)
"""Debian's sections that name a language or a form, and no topic."""
FAMILIES = re.compile(
    r"aspell|cl-|education|elpa|fonts-noto|gir1|golang|haskell|hunspell|hyphen|lib|mythes|node|perl|"
    r"php|python|r-|ruby|task|tesseract|texlive|xfonts|xserver"
)
"""How the names of packages begin whose descriptions read alike."""


@cache
def packages(split: str) -> list[dict[str, Any]]:
    """Debian's packages in English, without the families that read alike.

    Of packages whose names begin alike (``gcompris-qt``, ``gcompris-qt-data``) the first alone.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in rows("debian", split):
        if not NO_SECTIONS.fullmatch(row["section"]) and not FAMILIES.match(row["package"]):
            found.setdefault(row["package"].split("-")[0], row)
    return list(found.values())


@dataclass(frozen=True)
class Labelled:
    """Texts of a data file that have a label."""

    file: str
    text: str
    label: str
    """A column."""
    kept: str = ".+"
    """Pattern of the labels that are kept."""


SECTIONS = (
    "database|editors|electronics|games|graphics|hamradio|mail|math|"
    "net|science|sound|text|video|web"
)
"""Debian's sections that are topics."""
TOPICS_HELD_OUT = (
    "Biology and health sciences|Geography|Mathematics|Philosophy and religion|"
    "Society and social sciences"
)
"""Every second of Wikipedia's topics by the alphabet; laptop.yaml trains on none of them."""
CATEGORIES_HELD_OUT = (
    r"noun\.(animal|attribute|cognition|event|food|location|object|phenomenon|possession|quantity|"
    r"shape|substance)|"
    r"verb\.(body|cognition|competition|contact|emotion|perception|social|weather)"
)
"""Every second of WordNet's categories (``noun.Tops`` left out); laptop.yaml trains on none."""
LABELLED = {
    "topic": Labelled("wikipedia", "extract", "topic"),
    "topic_held_out": Labelled("wikipedia", "extract", "topic", TOPICS_HELD_OUT),
    "category": Labelled("wordnet", "gloss", "category", r"noun\.(?!Tops).*|verb\..*"),
    "category_held_out": Labelled("wordnet", "gloss", "category", CATEGORIES_HELD_OUT),
    "section": Labelled("debian", "long", "section", SECTIONS),
    "section_of_short": Labelled("debian", "short", "section", SECTIONS),
    "library_topic": Labelled("docstrings", "rest", "topic"),
    "library_topic_of_summary": Labelled("docstrings", "summary", "topic"),
    "country_subject": Labelled("factbook", "text", "subject"),
}


def labelled(name: str, split: str) -> list[tuple[str, str]]:
    """(text, label) of one entry of :data:`LABELLED`, Debian's of :func:`packages`."""
    spec = LABELLED[name]
    found = packages(split) if spec.file == "debian" else rows(spec.file, split)
    return [(r[spec.text], r[spec.label]) for r in found if re.fullmatch(spec.kept, r[spec.label])]
