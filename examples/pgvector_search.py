"""Search with PostgreSQL and its extension pgvector, in a table that goes when the program ends.

pip install "psycopg[binary]" openai
st-jv5 serve out/demo/model --name st-jv5 &
python examples/pgvector_search.py http://127.0.0.1:8000/v1 postgresql://me@127.0.0.1/mine
"""

import os
import sys

import psycopg
from openai import OpenAI

DOCUMENTS = ["The lungs take up oxygen.", "A prime has two divisors.", "Paris lies on the Seine."]
NEAREST = "SELECT text, 1 - (vector <=> %(v)s) FROM notes ORDER BY vector <=> %(v)s LIMIT 1"


def main(url: str, database: str) -> None:
    """Print a question with its nearest document."""
    server = OpenAI(base_url=url, api_key=os.environ.get("ST_JV5_API_KEY", "none"))

    def vectors(texts: list[str], task: str) -> list[str]:
        data = server.embeddings.create(model=f"st-jv5/{task}", input=texts).data
        return [str(row.embedding) for row in data]  # pgvector reads "[0.1, 0.2]"

    found = vectors(DOCUMENTS, "document")
    width = found[0].count(",") + 1
    question = "what do we breathe with?"
    with psycopg.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
        cursor.execute(f"CREATE TEMPORARY TABLE notes (text text, vector vector({width}))")
        cursor.executemany("INSERT INTO notes VALUES (%s, %s)", zip(DOCUMENTS, found, strict=True))
        cursor.execute("CREATE INDEX ON notes USING hnsw (vector vector_cosine_ops)")
        text, cosine = cursor.execute(NEAREST, {"v": vectors([question], "query")[0]}).fetchone()
        print(question, f"{cosine:.2f}", text)


if __name__ == "__main__":
    main(*sys.argv[1:])
