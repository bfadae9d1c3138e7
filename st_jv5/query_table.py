"""Query vectors by look-up in a table; they match the document vectors of a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Router,
    StaticEmbedding,
)
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from st_jv5.adapters import merge_task
from st_jv5.encoding import Array, checked_texts, encode
from st_jv5.folders.licenses import Licenses
from st_jv5.modules import AdapterRouter
from st_jv5.projection import Projection
from st_jv5.task_table import BASE, TaskName

RARE = 1e-3
"""``a`` of a token's first weight a / (a + p), p its share of all tokens (Arora et al. 2017)."""
WARMUP_STEPS = 50
NO_LENGTH = 1 << 31
"""A tokenizer whose ``model_max_length`` is this or more has no limit."""
MOST_WORDS = 1 << 18
"""Words whose ids are kept, some tens of megabytes; later ones are tokenised each time."""


def fit_query_table(
    model: SentenceTransformer,
    queries: Sequence[str],
    *,
    task: TaskName | None = None,
    epochs: int = 8,
    batch_size: int = 1024,
    learning_rate: float = 2e-3,
    seed: int = 0,
    show_progress_bar: bool = False,
) -> SentenceTransformer:
    r"""Make a model that looks queries up in a table and encodes documents as the given model does.

    A query's vector is the mean of its tokens' rows in the table, scaled to unit length. Each row
    starts as the model's vector of that token alone, shorter for frequent tokens. Then the rows are
    trained to give the model's vectors of whole queries:

    .. math:: L = \frac{1}{B} \sum_i 1 - \cos(x_i, q_i)

    where ``x`` are the table's vectors and ``q`` the model's. No labels and no documents are
    needed, and an existing index of the model's document vectors can be used as it is. The more
    queries, the better; they need not be real queries: titles, lines and sentences will do.

    The result has only modules of sentence-transformers, so it can be loaded without this package.
    ``encode_query`` uses the table; ``encode_document`` and ``encode`` run the model with the
    task's adapter merged. After loading, call :func:`remember_words` to make look-ups as fast as
    before saving. The modules of a stock model are shared with the result, not copied. Queries get
    no prompt: the table has learnt its effect.

    Args:
        model: An st_jv5 model, or any SentenceTransformer for texts with a fast tokenizer.
        queries: Tens of thousands of texts like the queries to come. Repeats count once.
        task: An adapter of an st_jv5 model, or a blend; None is retrieval, or the base if there are
            no adapters. Leave it out for a stock model.
        epochs: Passes over the queries.
        batch_size: Queries per step.
        learning_rate: Peak learning rate; it rises for 50 steps and then falls to zero.
        seed: Seed of the order of the queries; the same seed gives the same table.
        show_progress_bar: Show progress bars of encoding and training.

    Returns:
        A SentenceTransformer with vectors of the model's width. A query without any token gets a
        zero vector.

    Raises:
        ValueError: No query has a token, a query is not a string, the task is unknown, or the
            tokenizer is not a fast one.

    References:
        LightRetriever, arXiv:2505.12260 (tokens encoded alone, then summed); model2vec (weights by
        frequency, then distillation).

    Example:
        >>> fast = fit_query_table(rotary_student, texts, epochs=1)
        >>> fast.encode_query(["a cat"]).shape, fast.encode_document(["a cat"]).shape
        ((1, 48), (1, 48))
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate must be above 0, not {learning_rate}")
    documents = _of_documents(model, task)
    tokenizer = _own_tokenizer(documents)
    bags = _Bags(tokenizer, list(dict.fromkeys(checked_texts(queries))))
    vectors = _query_vectors(documents, bags.texts, show_progress_bar)
    start = _start(documents, tokenizer, bags, vectors, show_progress_bar)
    table = nn.EmbeddingBag.from_pretrained(start, freeze=False, sparse=True)
    steps = -(-epochs * len(bags.texts) // batch_size)
    order = _order(len(bags.texts), batch_size, steps, seed)
    _train(table, bags, vectors, order, learning_rate, steps, show_progress_bar)
    query = StaticEmbedding(tokenizer, embedding_weights=table.weight.detach())
    fast = _joined(model, documents, [query, Normalize()], prompt="")
    if splits_at_spaces(tokenizer):
        remember_words(fast)
    return fast


def fit_query_encoder(
    model: SentenceTransformer,
    queries: Sequence[str],
    encoder: SentenceTransformer,
    *,
    task: TaskName | None = None,
    encoder_task: TaskName | None = None,
    show_progress_bar: bool = False,
) -> SentenceTransformer:
    """Make a model that encodes queries with a small model and documents with a large one.

    A linear map, fitted by least squares, leads from the small model's query vectors to the large
    one's; neither model is trained. This is useful where the small model has learnt from the large
    one, as a student from its teacher.

    Args:
        model: The large model, which encodes the documents; as in :func:`fit_query_table`.
        queries: Texts like the queries to come; there must be more texts than ``encoder`` has dims.
        encoder: The small model.
        task: Task of ``model``, as in :func:`fit_query_table`.
        encoder_task: Task of ``encoder``, likewise.
        show_progress_bar: Show progress bars of encoding.

    Returns:
        A SentenceTransformer: ``encode_query`` runs the small model with its query prompt and then
        the map; ``encode_document`` runs the large model.

    Raises:
        ValueError: There are fewer queries than dims, a query is not a string, or a task is
            unknown.

    Example:
        >>> joined = fit_query_encoder(student, texts, rotary_student)
        >>> joined.encode_query(["a cat"]).shape
        (1, 384)
    """
    documents, small = _of_documents(model, task), _of_documents(encoder, encoder_task)
    texts = list(dict.fromkeys(checked_texts(queries)))
    with small.truncate_embeddings(None):
        width = small.get_embedding_dimension() or 0
    if len(texts) <= width:
        raise ValueError(f"{len(texts)} queries cannot fit a map of {width} dims; pass more")
    inputs = normalize(_query_vectors(small, texts, show_progress_bar), dim=-1)
    targets = _query_vectors(documents, texts, show_progress_bar)
    linear = Projection.fitted(inputs, targets).linear
    dtype = small.dtype or torch.float32  # no module of a route casts what it gets
    joint = Dense(
        width,
        targets.shape[1],
        activation_function=nn.Identity(),
        init_weight=linear.weight.detach().to(dtype),
        init_bias=linear.bias.detach().to(dtype),
    )
    modules = [*small, Normalize(), joint, Normalize()]
    return _joined(model, documents, modules, prompt=small.prompts.get("query") or "")


# ------------------------------------------------------------------------------------------ words


def remember_words(model: SentenceTransformer) -> None:
    """Make look-ups of a model with a query table twice as fast: each word is tokenised only once.

    Most of a look-up's time is spent in the tokenizer. The vectors do not change. The setting is
    not saved with the model: call this after loading.

    Args:
        model: Made by :func:`fit_query_table`, or loaded from its folder.

    Raises:
        ValueError: The model has no table, or its tokenizer does not split texts at spaces.

    Example:
        >>> table = StaticEmbedding(student.tokenizer, embedding_dim=8)
        >>> fast = SentenceTransformer(modules=[table])
        >>> remember_words(fast)
        >>> fast.encode_query(["a cat"]).shape
        (1, 8)
    """
    table = model[0].sub_modules["query"][0] if isinstance(model[0], Router) else model[0]
    if not isinstance(table, StaticEmbedding):
        raise ValueError(f"queries are encoded by {type(table).__name__}, not looked up in a table")
    if isinstance(table.tokenizer, WordMemory):
        return
    if not splits_at_spaces(table.tokenizer):
        raise ValueError("this table's tokenizer does not split texts at spaces, as BERT's does")
    table.tokenizer = WordMemory(table.tokenizer)


def splits_at_spaces(tokenizer: Tokenizer) -> bool:
    """Whether the ids of a text are those of its words, one after the other."""
    return isinstance(tokenizer.pre_tokenizer, BertPreTokenizer)


class _Ids(NamedTuple):
    """What a table asks of a tokenizer's result."""

    ids: list[int]


class WordMemory:
    """A tokenizer of a table that tokenises each word once; all else is the tokenizer's own.

    Args:
        tokenizer: One that splits at spaces.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, list[int]] = {}

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[_Ids]:
        """Like the tokenizer's method, without special tokens."""
        truncation = self.tokenizer.truncation
        most = truncation["max_length"] if truncation else None
        found = []
        for text in texts:
            ids: list[int] = []
            for word in text.split(" "):
                own = self.known.get(word)
                ids += self._tokenised(word) if own is None else own
            found.append(_Ids(ids[:most]))
        return found

    def _tokenised(self, word: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(word, add_special_tokens=False).ids
        if len(self.known) < MOST_WORDS:
            self.known[word] = ids
        return ids

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "tokenizer":  # asked for while it is unpickled
            raise AttributeError(name)
        return getattr(self.tokenizer, name)


# ----------------------------------------------------------------------------------- both routes


def _of_documents(model: SentenceTransformer, task: TaskName | None) -> SentenceTransformer:
    """The model as stock modules: an adapter is merged."""
    router = model[0]
    if isinstance(router, AdapterRouter):
        usual = "retrieval" if router.tasks else BASE
        return merge_task(model, usual if task is None else task)
    if task is not None:
        raise ValueError(
            f"a model of {type(router).__name__} has no tasks; leave out task={task!r}"
        )
    return model


def _query_vectors(model: SentenceTransformer, texts: list[str], bar: bool) -> Tensor:
    """The model's own, float32 ``(n, dim)`` on the CPU, at full width."""
    prompt = model.prompts.get("query") or ""  # stock modules: none of them cuts
    return torch.from_numpy(encode(model, texts, prompt=prompt, show_progress_bar=bar))


def _joined(
    model: SentenceTransformer,
    documents: SentenceTransformer,
    query: list[nn.Module],
    prompt: str,
) -> SentenceTransformer:
    """A model with both routes; plain ``encode`` is the documents'."""
    router = Router.for_query_document(query_modules=query, document_modules=list(documents))
    default = documents.default_prompt_name
    found = SentenceTransformer(
        modules=[router],
        prompts={**documents.prompts, "query": prompt},
        default_prompt_name=None if default == "query" else default,
        similarity_fn_name=documents.similarity_fn_name,
        truncate_dim=model.truncate_dim,
        device=str(documents.device),
    )
    licenses: Licenses | None = getattr(model[0], "licenses", None)
    found.model_card_data.license = licenses and licenses.binding()
    return found


# -------------------------------------------------------------------------------------- the table


def _own_tokenizer(model: SentenceTransformer) -> Tokenizer:
    """A copy of the model's: a table's own neither pads nor adds special tokens."""
    fast = model.tokenizer
    if not isinstance(fast, PreTrainedTokenizerFast):
        raise ValueError(
            f"a table needs a fast tokenizer, not {type(fast).__name__}; load the model with one, "
            f"or pass a small model to fit_query_encoder"
        )
    tokenizer = Tokenizer.from_str(fast.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if 0 < (most := model.max_seq_length or 0) < NO_LENGTH:
        tokenizer.enable_truncation(most)
    return tokenizer


class _Bags:
    """Texts and their tokens' ids, one after the other; texts without tokens are left out.

    Args:
        tokenizer: The table's tokenizer.
        texts: Without repeats.
    """

    def __init__(self, tokenizer: Tokenizer, texts: list[str]) -> None:
        found = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
        self.texts = [text for text, ids in zip(texts, found, strict=True) if ids]
        if not self.texts:
            raise ValueError(
                f"no query has a token, of {len(texts)}; pass texts as people ask them"
            )
        self.lengths = np.array([len(ids) for ids in found if ids])
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.ids = np.concatenate([ids for ids in found if ids]).astype(np.int64)

    def take(self, rows: Array) -> tuple[Tensor, Tensor]:
        """Ids ``(tokens,)`` and where each text begins ``(n,)``, as an EmbeddingBag takes them."""
        lengths = self.lengths[rows]
        offsets = np.cumsum(lengths) - lengths
        places = np.repeat(self.starts[rows] - offsets, lengths) + np.arange(lengths.sum())
        return torch.from_numpy(self.ids[places]), torch.from_numpy(offsets)


def _start(
    model: SentenceTransformer, tokenizer: Tokenizer, bags: _Bags, vectors: Tensor, bar: bool
) -> Tensor:
    """Rows to begin with, float32 ``(ids, dim)``: each token's own vector, the frequent ones short.

    Special tokens, the unknown one among them, and tokens that are no text have the mean query.
    """
    names = tokenizer.get_vocab()
    rows = max(names.values()) + 1
    texts = dict(_as_texts(tokenizer, names))
    found = torch.zeros(rows, vectors.shape[1])
    found[:] = vectors.mean(dim=0)
    told = list(dict.fromkeys(texts.values()))
    place = {text: number for number, text in enumerate(told)}
    alone = _query_vectors(model, told, bar)
    found[list(texts)] = alone[[place[text] for text in texts.values()]]
    counts = np.bincount(bags.ids, minlength=rows) + 0.5
    weights = RARE / (RARE + counts / counts.sum())
    return found * torch.from_numpy(weights).float()[:, None]


def _as_texts(tokenizer: Tokenizer, names: dict[str, int]) -> Iterator[tuple[int, str]]:
    """Id -> a token's text, of those that have one."""
    special = {
        index for index, added in tokenizer.get_added_tokens_decoder().items() if added.special
    }
    prefix = json.loads(tokenizer.to_str())["model"].get("continuing_subword_prefix") or ""
    for index in names.values():
        if index not in special:
            text = tokenizer.decode([index]).removeprefix(prefix).strip()
            if text and "\ufffd" not in text:  # a part of a character
                yield index, text


def _order(count: int, batch_size: int, steps: int, seed: int) -> Iterator[Array]:
    """The rows of each step; every pass has an order of its own."""
    generator = np.random.default_rng(seed)
    waiting = np.zeros(0, dtype=np.int64)
    for _ in range(steps):
        while len(waiting) < min(batch_size, count):
            waiting = np.concatenate([waiting, generator.permutation(count)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _train(
    table: nn.EmbeddingBag,
    bags: _Bags,
    vectors: Tensor,
    order: Iterator[Array],
    learning_rate: float,
    steps: int,
    bar: bool,
) -> None:
    """Bring the table's vectors to the model's; only rows of a step's tokens move in it."""
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=learning_rate)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP_STEPS) * (1 - step / steps)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    vectors = normalize(vectors, dim=-1)
    with torch.enable_grad():
        for rows in tqdm(order, total=steps, disable=not bar):
            own: Any = normalize(table(*bags.take(rows)), dim=-1)
            loss = 1 - (own * vectors[torch.from_numpy(rows)]).sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
