"""Search with Qdrant, in this process's memory; QdrantClient(url=...) asks a server instead.

pip install qdrant-client openai
st-jv5 serve out/demo/model --name st-jv5 &
python examples/qdrant_search.py http://127.0.0.1:8000/v1
"""

import os
import sys

from openai import OpenAI
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, VectorParams

DOCUMENTS = ["The lungs take up oxygen.", "A prime has two divisors.", "Paris lies on the Seine."]


def main(url: str) -> None:
    """Print a question with its nearest document."""
    server = OpenAI(base_url=url, api_key=os.environ.get("ST_JV5_API_KEY", "none"))

    def vectors(texts: list[str], task: str) -> list[list[float]]:
        data = server.embeddings.create(model=f"st-jv5/{task}", input=texts).data
        return [row.embedding for row in data]

    found = vectors(DOCUMENTS, "document")
    store = QdrantClient(":memory:")
    store.create_collection("notes", VectorParams(size=len(found[0]), distance=Distance.COSINE))
    store.upload_collection("notes", found, payload=[{"text": text} for text in DOCUMENTS])
    question = "what do we breathe with?"
    (hit,) = store.query_points("notes", vectors([question], "query")[0], limit=1).points
    print(question, f"{hit.score:.2f}", hit.payload["text"])


if __name__ == "__main__":
    main(sys.argv[1])
