"""Search with LanceDB: a table in a folder, no server of its own.

pip install lancedb openai
st-jv5 serve out/demo/model --name st-jv5 &
python examples/lancedb_search.py http://127.0.0.1:8000/v1 out/lancedb
"""

import os
import sys

import lancedb
from openai import OpenAI

DOCUMENTS = ["The lungs take up oxygen.", "A prime has two divisors.", "Paris lies on the Seine."]


def main(url: str, folder: str) -> None:
    """Print a question with its nearest document."""
    server = OpenAI(base_url=url, api_key=os.environ.get("ST_JV5_API_KEY", "none"))

    def vectors(texts: list[str], task: str) -> list[list[float]]:
        data = server.embeddings.create(model=f"st-jv5/{task}", input=texts).data
        return [row.embedding for row in data]

    found = zip(DOCUMENTS, vectors(DOCUMENTS, "document"), strict=True)
    rows = [{"text": text, "vector": vector} for text, vector in found]
    table = lancedb.connect(folder).create_table("notes", rows, mode="overwrite")
    question = "what do we breathe with?"
    asked = table.search(vectors([question], "query")[0]).distance_type("cosine")
    (hit,) = asked.limit(1).to_list()
    print(question, f"{1 - hit['_distance']:.2f}", hit["text"])


if __name__ == "__main__":
    main(*sys.argv[1:])
