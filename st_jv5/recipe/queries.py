"""Ask a language model for a query to each text: training pairs from documents that have none.

``st-jv5 questions`` does it. Each answer is written when it comes; the same command again asks for
what is missing. A recipe reads the file as
`path: pairs.jsonl, columns: {query: query, positive: positive}`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from st_jv5.teacher.endpoint import EndpointTeacher

INSTRUCTION = (
    "Write one search query, in the language of the document, that this document answers and few "
    "others do. Give the query alone."
)
"""The paper's instruction is not published: ours."""


def read_pairs(path: Path) -> set[str]:
    """The documents that have a query; a last line that a kill has cut is dropped from the file."""
    if not path.exists():
        return set()
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        path.write_text("".join(lines[:-1]), encoding="utf-8")
        lines.pop()
    return {json.loads(line)["positive"] for line in lines}


def ask(server: EndpointTeacher, text: str, most_characters: int, instruction: str) -> str:
    """The query of one document, which the server sees up to so many characters of."""
    from openai import OpenAIError

    try:
        answer = server.client.chat.completions.create(
            model=server.model,
            messages=[
                {"role": "system", "content": instruction},
                {"role": "user", "content": text[:most_characters]},
            ],
            extra_body=server.extra_body or None,
        )
    except OpenAIError as error:
        raise ValueError(
            f"{server.url} gave no query for {text[:200]!r}: {error}; what is written stays"
        ) from error
    query = " ".join((answer.choices[0].message.content or "").split()).strip("\"'")
    if not query:
        raise ValueError(f"{server.url} gave no query for {text[:200]!r}")
    return query


def write_pairs(
    server: EndpointTeacher,
    texts: Sequence[str],
    path: str | Path,
    most_characters: int = 16_000,
    instruction: str = INSTRUCTION,
) -> int:
    """Ask for each text that the file has no query of; returns how many were asked.

    Args:
        server: Where, which model, how many at once, how often again.
        texts: Documents; equal ones are asked once.
        path: A jsonl file of ``query`` and ``positive``, which grows.
        most_characters: Most characters of a document that are sent to the server.
        instruction: Instruction to the language model.
    """
    path = Path(path)
    known = read_pairs(path)
    todo = [text for text in dict.fromkeys(texts) if text not in known]
    path.parent.mkdir(parents=True, exist_ok=True)
    _ = server.client  # made here, not by several threads at once
    pool = ThreadPoolExecutor(server.concurrency)
    try:
        with path.open("a", encoding="utf-8") as file:
            asked = {
                pool.submit(ask, server, text, most_characters, instruction): text for text in todo
            }
            for answer in tqdm(as_completed(asked), total=len(asked), unit="query"):
                row = {"query": answer.result(), "positive": asked[answer]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return len(todo)
