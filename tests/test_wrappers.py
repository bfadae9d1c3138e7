"""The lines for other libraries in docs/, run in an environment of theirs (`make test-full`)."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5.task_table import PROMPTS
from tests import engines
from tests.conftest import MINILM, ROOT, with_adapters

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]

PAGE = (ROOT / "docs" / "guides" / "other-libraries.md").read_text(encoding="utf-8")
LINES = {
    package: "\n".join(re.findall(r"`([^`]+)`", cell))
    for package, cell in re.findall(r"^\| `([\w-]+==[\d.]+)` \| (.*?) \| ", PAGE, re.M)
}
"""Package with its version -> the lines of the page's table."""

QUERY, DOCUMENT = "who painted the Sunflowers?", "Van Gogh was a Dutch painter."
SEARCH = ("query", "document")

ASKED = {
    "langchain-huggingface": (
        SEARCH,
        "query, document = embed.embed_query(QUERY), embed.embed_documents([DOCUMENT])[0]",
    ),
    "llama-index-embeddings-huggingface": (
        SEARCH,
        "query, document = embed.get_query_embedding(QUERY), embed.get_text_embedding(DOCUMENT)",
    ),
    "txtai": (
        SEARCH,
        "query, document = embed.transform(QUERY), embed.batchtransform([DOCUMENT], 'data')[0]",
    ),
    "chromadb": (SEARCH, "query, document = ask([QUERY])[0], embed([DOCUMENT])[0]"),
    "sentence-transformers-haystack": (
        SEARCH,
        "from haystack import Document\n"
        "query = ask.run(QUERY)['embedding']\n"
        "document = embed.run([Document(content=DOCUMENT)])['documents'][0].embedding",
    ),
    "setfit": (
        ("classification", "classification"),
        "query, document = classifier.encode([QUERY, DOCUMENT])",
    ),
    "bertopic": (
        ("clustering", "clustering"),
        "from bertopic.backend._utils import select_backend\n"
        "query, document = select_backend(topics.embedding_model).embed([QUERY, DOCUMENT])",
    ),
}
"""Package -> the tasks of its query and its document, and how their vectors are asked for."""

VECTORS = f"""
QUERY, DOCUMENT = {QUERY!r}, {DOCUMENT!r}
{{lines}}
{{ask}}
print("RESULT", json.dumps([[float(x) for x in query], [float(x) for x in document]]))
"""

QUERY_TEXTS = f"""
import chromadb
{{lines}}
texts = chromadb.EphemeralClient().create_collection("texts", embedding_function=embed)
texts.add(ids=["one"], documents=[{QUERY!r}])
told = dict(include=["distances"], n_results=1)
as_text = texts.query(query_texts=[{QUERY!r}], **told)["distances"][0][0]
as_query = texts.query(query_embeddings=ask([{QUERY!r}]), **told)["distances"][0][0]
print("RESULT", json.dumps([as_text, as_query]))
"""

TRAINED = """
from datasets import Dataset
from setfit import Trainer, TrainingArguments
{lines}
before = {{name: tensor.clone() for name, tensor in body.state_dict().items()}}
rows = Dataset.from_dict({{"text": ["a sonata", "an opera", "a proton", "a quark"],
                          "label": [0, 0, 1, 1]}})
told = TrainingArguments(output_dir="out/setfit", max_steps=2, batch_size=4, report_to="none",
                         body_learning_rate=1e-3)
Trainer(model=classifier, args=told, train_dataset=rows).train()
after = body.state_dict()
print("RESULT", json.dumps([name for name in after if not after[name].equal(before[name])]))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """Of an environment with all the table's packages, and what this package needs."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return engines.venv("wrappers", *needed, *LINES) / "python"


@pytest.fixture(scope="module", params=["prompts", "no prompts"])
def folder(request, tmp_path_factory) -> Path:
    """Where `out/demo/model` lies: a model with the paper's prompts, or with none."""
    own = {"pooling": "lasttoken", "prompts": PROMPTS} if request.param == "prompts" else {}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wrappers")
    model = with_adapters(st_jv5.new_student(MINILM, layers=[0, 5], **own))
    model.save_pretrained(str(folder / "out" / "demo" / "model"))
    return folder


@pytest.fixture(scope="module")
def ours(folder) -> SentenceTransformer:
    return SentenceTransformer(str(folder / "out" / "demo" / "model"))


def run(python: Path, folder: Path, script: str) -> list:
    """What a script in the environment prints as its result."""
    imports = "import json, st_jv5\nfrom sentence_transformers import SentenceTransformer\n"
    done = subprocess.run(
        [python, "-c", imports + script],
        cwd=folder,
        env={**engines.QUIET, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(re.findall(r"^RESULT (.*)$", done.stdout, re.M)[-1])


def lines_of(package: str) -> str:
    (found,) = (lines for named, lines in LINES.items() if named.split("==")[0] == package)
    return found


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_every_library_of_the_page_is_asked():
    assert {named.split("==")[0] for named in LINES} == set(ASKED)


@pytest.mark.parametrize("package", ASKED)
def test_the_lines_of_the_page_give_our_vectors(python, folder, ours, package):
    tasks, ask = ASKED[package]
    found = run(python, folder, VECTORS.format(lines=lines_of(package), ask=ask))
    for text, task, vector in zip((QUERY, DOCUMENT), tasks, found, strict=True):
        assert cosine(ours.encode(text, task=task), np.array(vector)) >= 0.99999, task


def test_the_query_and_document_vectors_of_one_text_differ_where_there_are_prompts(ours):
    """So the vectors above tell a query's line from a document's."""
    alike = cosine(ours.encode(QUERY, task="query"), ours.encode(QUERY, task="document"))
    assert (alike < 0.999) == (ours.prompts["query"] != "")


def test_chroma_encodes_query_texts_as_documents(python, folder, ours):
    as_text, as_query = run(python, folder, QUERY_TEXTS.format(lines=lines_of("chromadb")))
    assert as_text == pytest.approx(0, abs=1e-5)
    query, document = (ours.encode(QUERY, task=task) for task in SEARCH)
    assert as_query == pytest.approx(1 - cosine(query, document), abs=1e-5)


def test_setfit_trains_the_named_adapter_alone(python, folder):
    changed = run(python, folder, TRAINED.format(lines=lines_of("setfit")))
    assert changed
    assert all(".classification." in name for name in changed), changed
