"""Search with OpenAI's client: questions and documents each behind their own prompt.

pip install openai numpy
st-jv5 serve out/demo/model --name st-jv5 --task retrieval &
python examples/openai_search.py http://127.0.0.1:8000/v1
"""

import os
import sys

import numpy as np
from openai import OpenAI

DOCUMENTS = ["The lungs take up oxygen.", "A prime has two divisors.", "Paris lies on the Seine."]
QUESTIONS = ["what do we breathe with?", "which river flows through France's capital?"]


def main(url: str) -> None:
    """Print each question with its nearest document."""
    client = OpenAI(base_url=url, api_key=os.environ.get("ST_JV5_API_KEY", "none"))

    def vectors(texts: list[str], task: str) -> np.ndarray:
        answer = client.embeddings.create(model=f"st-jv5/{task}", input=texts)
        return np.array([row.embedding for row in answer.data])

    cosines = vectors(QUESTIONS, "query") @ vectors(DOCUMENTS, "document").T
    for question, row in zip(QUESTIONS, cosines, strict=True):
        print(f"{question}  {row.max():.2f}  {DOCUMENTS[row.argmax()]}")


if __name__ == "__main__":
    main(sys.argv[1])
