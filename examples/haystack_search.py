"""Search with Haystack: its OpenAI embedders, with one model name for each side.

pip install haystack-ai
st-jv5 serve out/demo/model --name st-jv5 &
python examples/haystack_search.py http://127.0.0.1:8000/v1
"""

import os
import sys

from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.components.retrievers import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret

DOCUMENTS = ["The lungs take up oxygen.", "A prime has two divisors.", "Paris lies on the Seine."]


def main(url: str) -> None:
    """Print a question with its nearest document."""
    key = Secret.from_token(os.environ.get("ST_JV5_API_KEY", "none"))
    common = {"api_key": key, "api_base_url": url}
    embed = OpenAIDocumentEmbedder(model="st-jv5/document", progress_bar=False, **common)
    ask = OpenAITextEmbedder(model="st-jv5/query", **common)
    store = InMemoryDocumentStore()
    store.write_documents(embed.run([Document(content=text) for text in DOCUMENTS])["documents"])
    question = "what do we breathe with?"
    vector = ask.run(question)["embedding"]
    (hit,) = InMemoryEmbeddingRetriever(store, top_k=1).run(vector)["documents"]
    print(question, f"{hit.score:.2f}", hit.content)


if __name__ == "__main__":
    main(sys.argv[1])
