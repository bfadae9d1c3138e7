"""Builds docstrings.parquet: summaries and prose of functions and classes of Python packages.

    pip download --no-deps --only-binary :all: -d out/wheels networkx==3.6.1 sympy==1.14.0 \\
        nltk==3.10.4 statsmodels==0.15.0 django==5.2.19 astropy==8.0.2 biopython==1.88 \\
        xarray==2026.9.0 scikit-image==0.26.0
    python training/make_docstrings.py out/wheels training/data/docstrings.parquet

numpy, scipy, scikit-learn, pandas, torch and matplotlib are read where they are installed, with the
standard library. Sources are parsed, never imported. The versions read are printed.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import sysconfig
import zipfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import distribution
from inspect import cleandoc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

INSTALLED = ("numpy", "scipy", "scikit-learn", "pandas", "torch", "matplotlib")
TOPICS = {
    "scipy.stats": "statistics",
    "statsmodels": "statistics",
    "numpy.random": "statistics",
    "scipy.optimize": "optimisation",
    "torch.optim": "optimisation",
    "statsmodels.base.optimizer": "optimisation",
    "scipy.signal": "signal processing",
    "scipy.fft": "signal processing",
    "scipy.fftpack": "signal processing",
    "numpy.fft": "signal processing",
    "networkx": "graphs",
    "scipy.sparse.csgraph": "graphs",
    "sympy": "algebra",
    "sympy.plotting": "plotting",
    "numpy.linalg": "algebra",
    "scipy.linalg": "algebra",
    "matplotlib": "plotting",
    "nltk": "text",
    "string": "text",
    "re": "text",
    "textwrap": "text",
    "difflib": "text",
    "django": "web",
    "http": "web",
    "urllib": "web",
    "html": "web",
    "wsgiref": "web",
    "astropy": "astronomy",
    "Bio": "biology",
    "skimage": "images",
    "scipy.ndimage": "images",
    "torch.nn": "neural networks",
    "pandas": "data tables",
    "xarray": "data tables",
    "sklearn": "machine learning",
    "os": "files and system",
    "shutil": "files and system",
    "pathlib": "files and system",
    "tarfile": "files and system",
    "zipfile": "files and system",
    "subprocess": "files and system",
    "tempfile": "files and system",
    "logging": "files and system",
    "multiprocessing": "files and system",
    "asyncio": "files and system",
    "concurrent": "files and system",
    "socket": "files and system",
    "ssl": "files and system",
    "mailbox": "files and system",
    "argparse": "files and system",
    "sqlite3": "files and system",
    "io": "files and system",
    "_pyio": "files and system",
    "gzip": "files and system",
    "threading": "files and system",
    "selectors": "files and system",
    "shelve": "files and system",
    "pickletools": "files and system",
    "ctypes": "files and system",
    "optparse": "files and system",
    "configparser": "files and system",
    "platform": "files and system",
    "fileinput": "files and system",
}
"""Module prefix -> topic; the longest prefix counts. Modules without a topic are not read."""
NOT_READ = re.compile(r"(^|\.)(tests?|testing|conftest|externals?|extern|_vendor|vendored|fixes)\.")
MOST_PER_TOPIC, MOST_PER_MODULE = 260, 14
SUMMARY, REST = (25, 200), (120, 600)
"""Characters: least and most. A longer rest is cut after a sentence."""


def modules(wheels: Path) -> Iterator[tuple[str, str, str]]:
    """(package, dotted module, source)."""
    for wheel in sorted(wheels.glob("*.whl")):
        package, version = wheel.name.split("-")[:2]
        print(package, version)
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".py"):
                    yield package, dotted(name), archive.read(name).decode("utf-8", "replace")
    for package in INSTALLED:
        found = distribution(package)
        print(package, found.version)
        for file in sorted(found.files or (), key=str):
            if file.suffix == ".py" and ".." not in file.parts:
                path = Path(str(file.locate()))
                yield package, dotted(str(file)), path.read_text("utf-8", "replace")
    print("python", sys.version.split()[0])
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if "site-packages" not in path.parts:
            yield (
                "python",
                dotted(str(path.relative_to(library))),
                path.read_text("utf-8", "replace"),
            )


def dotted(path: str) -> str:
    """scipy/stats/__init__.py -> scipy.stats."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def topic_of(module: str) -> str:
    """The topic of the longest prefix, or ""."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        if found := TOPICS.get(".".join(parts[:end])):
            return found
    return ""


def documented(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, str]]:
    """(name, docstring) of the public functions, classes and methods."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if node.name.startswith("_"):
                continue
            name = f"{inside}{node.name}"
            if text := ast.get_docstring(node, clean=True):
                yield name, text
            if isinstance(node, ast.ClassDef):
                yield from documented(node, f"{name}.")


def plain(text: str) -> str:
    """Without reStructuredText's marks."""
    text = re.sub(r":[\w:+-]+:`~?([^`<]+?)(?:\s*<[^>]*>)?`", r"\1", text)
    text = re.sub(r"`([^`<]+?)\s*<[^>]*>`_+", r"\1", text)
    text = re.sub(r"\s*\[\w+\]_", "", text)
    return " ".join(re.sub(r"[`*]{1,2}(?=\S)|(?<=\S)[`*]{1,2}", "", text).split()).replace(
        "::", ":"
    )


def prose(paragraph: str) -> bool:
    """Whether a paragraph is sentences: no code, table, list of arguments or directive."""
    lines = paragraph.splitlines()
    if any(
        re.match(r"\s*(\.\. |>>>|\.\.\. |[-=~^+|]{3,}|:\w|@\w|\$ |#|%)", line) for line in lines
    ):
        return False
    if lines[0][:1].isspace() or not re.search(r"[.:!?)]$", paragraph.strip()):
        return False
    letters = sum(letter.isalpha() or letter == " " for letter in paragraph)
    return len(paragraph.split()) >= 6 and letters >= 0.85 * len(paragraph)


def parted(docstring: str) -> tuple[str, str]:
    """(summary, rest): the first paragraph, and the prose up to the arguments and in the notes."""
    first, *others = re.split(r"\n\s*\n", cleandoc(docstring))
    kept: list[str] = []
    reading = True
    for paragraph in others:
        lines = paragraph.splitlines()
        headed = len(lines) > 1 and re.fullmatch(r"[-=~]{3,}", lines[1].strip())
        if headed:
            reading = lines[0].strip() in ("Notes", "Description")
            paragraph = "\n".join(lines[2:])
        elif re.match(r"(Args|Arguments|Parameters|Returns|Raises|Examples?|Yields)\s*:", lines[0]):
            reading = False
        if reading and paragraph.strip() and prose(paragraph):
            kept.append(plain(paragraph))
    return plain(first), cut(" ".join(kept), REST[1])


def cut(text: str, most: int) -> str:
    """The sentences within ``most`` characters."""
    if len(text) <= most:
        return text
    return text[: text.rfind(". ", 0, most) + 1]


def hashed(text: str) -> int:
    """A number that stands for a text, the same everywhere."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def split_of(module: str) -> str:
    """The split, by a hash of the module; train holds the examples of classifiers, and no more."""
    place = hashed(module) % 100
    return "train" if place < 20 else "validation" if place < 56 else "test"


def rows(wheels: Path) -> Iterator[dict[str, str]]:
    """One row per docstring; of equal summaries or beginnings the first alone."""
    docstrings = []
    for package, module, source in modules(wheels):
        topic = topic_of(module)
        if not topic or NOT_READ.search(f"{module}."):
            continue
        try:
            tree = ast.parse(source)
        except SyntaxError:
            continue
        for name, docstring in documented(tree):
            summary, rest = parted(docstring)
            if (
                SUMMARY[0] <= len(summary) <= SUMMARY[1]
                and len(rest) >= REST[0]
                and (summary.isascii() and rest.isascii())
            ):
                row = {"package": package, "module": module, "name": name, "summary": summary}
                docstrings.append({**row, "rest": rest, "topic": topic})
    seen: set[str] = set()
    per_topic, per_module = Counter[str](), Counter[str]()
    for row in sorted(docstrings, key=lambda row: hashed(f"{row['module']}.{row['name']}")):
        begins = {row["summary"].lower()[:60], row["rest"].lower()[:60]}
        full = per_topic[row["topic"]] >= MOST_PER_TOPIC
        if full or per_module[row["module"]] >= MOST_PER_MODULE or begins & seen:
            continue
        seen |= begins
        per_topic[row["topic"]] += 1
        per_module[row["module"]] += 1
        yield {**row, "split": split_of(row["module"])}


if __name__ == "__main__":
    table = pa.Table.from_pylist(
        sorted(
            rows(Path(sys.argv[1])), key=lambda row: (row["package"], row["module"], row["name"])
        )
    )
    pq.write_table(table, sys.argv[2], compression="zstd", compression_level=19)
    print(f"{len(table)} rows: {sys.argv[2]}")
