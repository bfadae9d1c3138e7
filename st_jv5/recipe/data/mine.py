"""Hard negatives: of each query the nearest documents that do not answer it, in bounded memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from st_jv5.teacher.shard import Array
from st_jv5.vector_source import Vectors

MARGIN = 0.05
"""A document from 95% of the positive's cosine on counts as a false negative."""
NEAREST = 50
"""Number of nearest documents that are looked at, besides the positives."""
QUERIES = 8192
"""Rows of scores at once."""
DOCUMENTS = 8192
"""Columns of scores at once: with float32 256 MiB."""


def mine(
    query_of: Array,
    document_of: Array,
    query_rows: Array,
    document_rows: Array,
    queries: Vectors,
    documents: Vectors,
    negatives: int,
) -> Array:
    """The documents of other pairs that the teacher finds nearest the query of each pair.

    A document is passed over as a false negative from 95% of the cosine of the query's worst
    positive on (the paper does not say how it mines). What is found is what sentence-transformers'
    ``mine_hard_negatives`` finds, which holds all vectors and 16,384 queries' scores of all
    documents; here it is a block of scores, whatever the number of documents.

    Args:
        query_of: int ``(pairs,)``, the distinct query of each pair.
        document_of: int ``(pairs,)``, its distinct document.
        query_rows: int ``(queries,)``, where each query's vector stands.
        document_rows: int ``(documents,)``, where each document's stands.
        queries: The queries' vectors.
        documents: The documents'.
        negatives: Number of negatives of each pair.

    Returns:
        int64 ``(pairs kept, 2 + negatives)``: query, document, negatives. Pairs of one query stand
        together. Those of a query with too few documents left are not kept.
    """
    order = np.argsort(query_of, kind="stable")
    query_of, document_of = query_of[order], document_of[order]
    bounds = np.searchsorted(query_of, np.arange(len(query_rows) + 1))
    most = int(np.diff(bounds).max())
    kept: list[Array] = []
    for begin in tqdm(
        range(0, len(query_rows), QUERIES), desc="mining", unit="block", disable=None
    ):
        end = min(begin + QUERIES, len(query_rows))
        low, high = bounds[begin], bounds[end]
        own, positives = query_of[low:high] - begin, document_of[low:high]
        vectors = _unit(queries, query_rows[begin:end])
        scores, places = _nearest(vectors, documents, document_rows, NEAREST + most)
        limit = _limits(vectors, documents, document_rows, own, positives)
        barred = scores > (limit - limit.abs() * MARGIN)[:, None]
        barred |= _are_positives(places, own, positives, len(document_rows))
        scores[barred] = -torch.inf
        scores, best = scores.topk(min(negatives, scores.shape[1]), dim=1)
        if scores.shape[1] < negatives:
            continue
        places = places.gather(1, best)
        enough = (~scores.isinf()).all(dim=1).cpu().numpy()[own]
        chosen = places.cpu().numpy()[own]
        pairs = np.column_stack([own + begin, positives, chosen])
        kept.append(pairs[enough])
    return np.concatenate(kept) if kept else np.zeros((0, 2 + negatives), np.int64)


def _unit(store: Vectors, rows: Array) -> Tensor:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return normalize(store.gather(rows).to(device).float(), dim=1)


def _nearest(vectors: Tensor, documents: Vectors, rows: Array, k: int) -> tuple[Tensor, Tensor]:
    """Cosines of the nearest documents of each query, highest first, and their places."""
    scores = vectors.new_zeros(len(vectors), 0)
    places = scores.long()
    for begin in range(0, len(rows), DOCUMENTS):
        found = vectors @ _unit(documents, rows[begin : begin + DOCUMENTS]).T
        found, where = found.topk(min(k, found.shape[1]), dim=1)
        scores = torch.cat([scores, found], dim=1)
        places = torch.cat([places, where + begin], dim=1)
        scores, best = scores.topk(min(k, scores.shape[1]), dim=1)
        places = places.gather(1, best)
    return scores, places


def _limits(
    vectors: Tensor, documents: Vectors, rows: Array, own: Array, positives: Array
) -> Tensor:
    """The cosine of each query's worst positive."""
    found = vectors.new_full((len(vectors),), torch.inf)
    for begin in range(0, len(own), DOCUMENTS):
        part = slice(begin, begin + DOCUMENTS)
        query = torch.from_numpy(own[part]).to(vectors.device)
        cosines = (vectors[query] * _unit(documents, rows[positives[part]])).sum(dim=1)
        found.scatter_reduce_(0, query, cosines, "amin")
    return found


def _are_positives(places: Tensor, own: Array, positives: Array, documents: int) -> Tensor:
    """Which of each query's nearest documents are its own positives, bool as ``places``."""
    known = torch.from_numpy(own * documents + positives).to(places.device)
    first = torch.arange(len(places), device=places.device)[:, None] * documents
    return torch.isin(places + first, known)
