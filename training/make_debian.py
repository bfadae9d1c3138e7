"""Builds debian.parquet: the descriptions of Debian's packages, from the lists that apt keeps.

    apt-get -o Acquire::Languages=en,cs,da,de,es,fr,it,ja,ko,pl,pt_BR,ru,uk,zh_CN update
    python training/make_debian.py training/data/debian.parquet

Debian 12 (bookworm, main). Its lists are read decompressed (``lz4``), from ``/var/lib/apt/lists``.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

LISTS = Path("/var/lib/apt/lists")
LANGUAGES = (
    "en", "cs", "da", "de", "es", "fr", "it", "ja", "ko", "pl", "pt_BR", "ru", "uk", "zh_CN",
)  # fmt: skip
LEAST_CHARACTERS = 120
"""Characters of a long description."""
MOST_ROWS = 2_000
"""Most rows of a language other than English."""
NO_DESCRIPTION = re.compile(
    r"transitional|dummy package|debug symbols|debugging symbols|development (files|headers)"
    r"|\(development|header files|empty package",
    re.IGNORECASE,
)


def paragraphs(pattern: str) -> Iterator[dict[str, str]]:
    """Field -> value of each paragraph of a list; continuation lines keep their newlines."""
    (path,) = LISTS.glob(f"*_dists_bookworm_main_{pattern}*")
    read = ["lz4", "-dc"] if path.suffix == ".lz4" else ["cat"]
    text = subprocess.run([*read, str(path)], capture_output=True, check=True).stdout.decode()
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        key = ""
        for line in block.splitlines():
            if line.startswith(" "):
                fields[key] += "\n" + line[1:]
            else:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
        if fields:
            yield fields


def described(text: str) -> tuple[str, str]:
    """The short and the long description; paragraphs of the long one by newline."""
    short, _, rest = text.partition("\n")
    lines = [[""]]
    for line in rest.split("\n"):
        if line.strip() == ".":
            lines.append([""])
        elif line.startswith((" ", "*", "-")):  # a list keeps its lines
            lines.append([line.strip()])
        else:
            lines[-1].append(line.strip())
    return short.strip(), "\n".join(filter(None, (" ".join(part).strip() for part in lines)))


def split_of(source: str) -> str:
    """The split, by a hash of the source package: train 85%, validation 5%, test 10%."""
    place = int(hashlib.sha256(source.encode()).hexdigest(), 16) % 100
    return "train" if place < 85 else "validation" if place < 90 else "test"


def rows() -> Iterator[dict[str, str]]:
    """One row per package and language."""
    packages = {row["Package"]: row for row in paragraphs("binary-amd64_Packages")}
    for language in LANGUAGES:
        shorts: set[str] = set()
        begins: set[str] = set()
        count = Counter[str]()
        found = paragraphs(f"i18n_Translation-{language.replace('_', '%5f')}")
        # By a hash, so that a limit takes no letter of the alphabet before another.
        for row in sorted(
            found, key=lambda row: hashlib.sha256(row["Package"].encode()).hexdigest()
        ):
            package = packages.get(row["Package"])
            text = row.get(f"Description-{language}", "")
            if package is None or not text or (count[language] == MOST_ROWS and language != "en"):
                continue
            short, long = described(text)
            english = package["Description"]
            if len(long) < LEAST_CHARACTERS or NO_DESCRIPTION.search(f"{english} {short}"):
                continue
            if row["Package"].endswith(("-dev", "-dbg", "-dbgsym")):
                continue
            if short.lower() in shorts or long[:LEAST_CHARACTERS].lower() in begins:
                continue
            shorts.add(short.lower())
            begins.add(long[:LEAST_CHARACTERS].lower())
            count[language] += 1
            source = package.get("Source", row["Package"]).split()[0]
            yield {
                "lang": language,
                "package": row["Package"],
                "section": package["Section"].rpartition("/")[2],
                "short": short,
                "long": long,
                "split": split_of(source),
            }


if __name__ == "__main__":
    table = pa.Table.from_pylist(sorted(rows(), key=lambda row: (row["lang"], row["package"])))
    pq.write_table(table, sys.argv[1], compression="zstd", compression_level=19)
    print(f"{len(table)} rows: {sys.argv[1]}")
