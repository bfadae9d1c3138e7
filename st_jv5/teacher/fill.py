"""Fill a store from a teacher."""

from __future__ import annotations

from collections.abc import Sequence

from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from st_jv5.encoding import encode
from st_jv5.teacher.store import TeacherStore


def fill(
    store: TeacherStore,
    teacher: SentenceTransformer,
    texts: Sequence[str],
    batch_tokens: int | None = None,
    chunk_texts: int = 4096,
) -> int:
    """Compute the vectors that a store lacks; a second run goes on where the first was stopped.

    The missing texts are encoded longest first, in chunks; a chunk is in the store when it is done,
    so Ctrl-C or a kill loses one at most.

    Args:
        store: A space of a store; its prompt and max_tokens are what the teacher is run with.
        teacher: The teacher.
        texts: Texts, repeats welcome.
        batch_tokens: Padded tokens per forward; None fits the device.
        chunk_texts: Texts per write.

    Returns:
        How many vectors were computed.

    Raises:
        ValueError: A vector of the wrong width, with a NaN, or zero; names the text.

    Example:
        >>> store = TeacherStore.open(folder, create=True).space("minilm", dim=384)
        >>> fill(store, teacher, ["a cat", "a dog", "a cat"])
        2
    """
    unique = list(dict.fromkeys(texts))
    rows = store.rows(unique, missing_ok=True)
    missing = [text for text, row in zip(unique, rows, strict=True) if row < 0]
    missing.sort(key=lambda text: (-len(text), text))
    key = store._key
    before = teacher.max_seq_length
    teacher.max_seq_length = min(key.max_tokens, before or key.max_tokens)
    try:
        with tqdm(total=len(missing), desc="teacher", unit="text", disable=not missing) as bar:
            for begin in range(0, len(missing), chunk_texts):
                chunk = missing[begin : begin + chunk_texts]
                vectors = encode(teacher, chunk, prompt=key.prompt, batch_tokens=batch_tokens)
                store.add(chunk, vectors)
                bar.update(len(chunk))
    finally:
        teacher.max_seq_length = before
    return len(missing)
