"""A served model whose queries are looked up in a table, and its documents computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Router, StaticEmbedding

from st_jv5.encoding import Array
from st_jv5.query_table import remember_words, splits_at_spaces
from st_jv5.serve.tokens import TokenCounter
from st_jv5.student import new_student

LOOKED_UP_TOGETHER = 1024
SERVED = ("Pooling", "Normalize")
"""Modules behind the documents' transformer."""


class QueryTable:
    """Looks queries up; this is so quick that no query waits for the model's thread.

    Args:
        model: A model of :func:`st_jv5.fit_query_table`.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        self.model = model
        table = model[0].sub_modules["query"][0]
        if not isinstance(table, StaticEmbedding):
            raise ValueError(
                f"queries of this model are encoded by {type(table).__name__}, not looked up in a "
                f"table; a server takes an st_jv5 model, or one of st_jv5.fit_query_table"
            )
        most = table.tokenizer.truncation
        self.counter = TokenCounter(
            table.tokenizer, most=most and most["max_length"], special_tokens=False
        )
        if splits_at_spaces(table.tokenizer):
            remember_words(model)

    def vectors(self, texts: Sequence[str]) -> Array:
        """Float32 ``(n, D)``, unit rows, of texts with their prompts."""
        found = self.model.encode(
            list(texts),
            task="query",
            prompt="",
            batch_size=LOOKED_UP_TOGETHER,
            show_progress_bar=False,
        )
        return np.asarray(found, dtype=np.float32)


def split(model: SentenceTransformer) -> tuple[SentenceTransformer, QueryTable | None]:
    """An st_jv5 model as it is; or of a model with a table its documents' model, and the table."""
    if not isinstance(model[0], Router):
        return model, None
    table = QueryTable(model)
    kinds = [type(module).__name__ for module in model[0].sub_modules["document"]]
    if extra := [kind for kind in kinds[1:] if kind not in SERVED]:
        raise ValueError(
            f"documents of this model go through {', '.join(extra)}, which a server of a query "
            f"table does not run; fit the table on a model without a rotation "
            f"(st_jv5.rotation.unrotate)"
        )
    stock = SentenceTransformer(
        modules=list(model[0].sub_modules["document"]),
        prompts=model.prompts,
        device=str(model.device),
    )
    documents = new_student(stock).to(model.device)
    documents.truncate_dim = model.truncate_dim
    return documents, table
