"""Encode the lines of a file, and search them by each adapter in turn.

pip install .
python examples/encode_and_search.py out/demo/model notes.txt "what do we breathe with?"
"""

import sys
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.util import semantic_search

import st_jv5


def main(path: str, file: str, question: str) -> None:
    """Print the three lines that each adapter finds nearest."""
    model = SentenceTransformer(path)
    texts = [text for text in Path(file).read_text(encoding="utf-8").splitlines() if text.strip()]
    for task in st_jv5.tasks(model):
        # Retrieval alone tells a question from what answers it; the others compare like with like.
        asking, found = ("query", "document") if task == "retrieval" else (task, task)
        vectors = st_jv5.encode(model, texts, found)  # as model.encode, in batches by tokens
        hits = semantic_search(st_jv5.encode(model, [question], asking), vectors, top_k=3)[0]
        print(task)
        for hit in hits:
            print(f"  {hit['score']:.2f}  {texts[hit['corpus_id']]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
