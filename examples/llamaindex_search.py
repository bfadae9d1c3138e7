"""Search with LlamaIndex: its OpenAI-like embedding, with one model name for each side.

pip install llama-index-core llama-index-embeddings-openai-like
st-jv5 serve out/demo/model --name st-jv5 &
python examples/llamaindex_search.py http://127.0.0.1:8000/v1
"""

import os
import sys

from llama_index.core import Document, VectorStoreIndex
from llama_index.embeddings.openai_like import OpenAILikeEmbedding

DOCUMENTS = ["The lungs take up oxygen.", "A prime has two divisors.", "Paris lies on the Seine."]


def embedding(url: str, task: str) -> OpenAILikeEmbedding:
    """Of one task."""
    key = os.environ.get("ST_JV5_API_KEY", "none")
    return OpenAILikeEmbedding(model_name=f"st-jv5/{task}", api_base=url, api_key=key)


def main(url: str) -> None:
    """Print a question with its nearest document."""
    documents = [Document(text=text) for text in DOCUMENTS]
    index = VectorStoreIndex.from_documents(documents, embed_model=embedding(url, "document"))
    asking = index.as_retriever(similarity_top_k=1, embed_model=embedding(url, "query"))
    question = "what do we breathe with?"
    (hit,) = asking.retrieve(question)
    print(question, f"{hit.score:.2f}", hit.text)


if __name__ == "__main__":
    main(sys.argv[1])
