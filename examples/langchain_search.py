"""Search with LangChain: one embeddings object asks for queries, one for documents.

pip install langchain-core langchain-openai numpy
st-jv5 serve out/demo/model --name st-jv5 &
python examples/langchain_search.py http://127.0.0.1:8000/v1
"""

import os
import sys

from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import OpenAIEmbeddings

DOCUMENTS = ["The lungs take up oxygen.", "A prime has two divisors.", "Paris lies on the Seine."]


class TaskEmbeddings(OpenAIEmbeddings):
    """Queries under the task ``query``, documents under ``document``."""

    def embed_query(self, text: str, **kwargs) -> list[float]:
        """Behind the query prompt."""
        return self.model_copy(update={"model": "st-jv5/query"}).embed_documents([text])[0]


def main(url: str) -> None:
    """Print a question with its nearest document."""
    embeddings = TaskEmbeddings(
        base_url=url,
        api_key=os.environ.get("ST_JV5_API_KEY", "none"),
        model="st-jv5/document",
        check_embedding_ctx_length=False,  # else it sends token ids of OpenAI's tokenizer
    )
    store = InMemoryVectorStore.from_texts(DOCUMENTS, embeddings)
    question = "what do we breathe with?"
    print(question, store.similarity_search(question, k=1)[0].page_content)


if __name__ == "__main__":
    main(sys.argv[1])
