"""Queries that a language model writes, over loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from st_jv5.cli import main
from st_jv5.recipe.config import DataSet
from st_jv5.recipe.data.prepare import read_rows
from st_jv5.recipe.queries import write_pairs
from st_jv5.teacher import EndpointTeacher
from tests.teacher.embedding_server import Server, send, serve

TEXTS = [f"Document {i} tells of the number {i}, at length." for i in range(12)]


class Chat(Server):
    """Asks for the first three words of what it is given."""

    path = "/v1/chat/completions"

    def answer(self, handler, body):
        with self.lock:
            self.requests.append(body)
            fault = self.faults.pop(0) if self.faults else None
        if fault is not None and fault(handler, body):
            return
        content = " ".join(body["messages"][-1]["content"].split()[:2])
        message = {"role": "assistant", "content": f' "what is  {content}?"\n'}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        send(handler, 200, {"object": "chat.completion", "choices": choices, "model": "m"})


@pytest.fixture
def chat():
    with serve(Chat()) as server:
        yield server


def test_each_document_gets_a_query_once_and_a_recipe_reads_them(chat, tmp_path):
    corpus, out = tmp_path / "docs.jsonl", tmp_path / "pairs.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, TEXTS[0]]))
    server = ["questions", "--url", chat.url, "--model", "m"]
    command = [*server, "--in", str(corpus), "--out", str(out)]
    main([*command, "--most-characters", "30"])
    assert len(chat.requests) == 12
    assert all(len(r["messages"][-1]["content"]) <= 30 for r in chat.requests)
    columns = {"query": "query", "positive": "positive"}
    rows = read_rows("x", DataSet(path=str(out), columns=columns), 0, tmp_path / "data")
    assert {row["positive"]: row["query"] for row in rows} == {
        text: f"what is Document {i}?" for i, text in enumerate(TEXTS)
    }
    main(command)
    assert len(chat.requests) == 12


def test_what_was_written_before_a_kill_is_not_asked_again(chat, tmp_path):
    out = tmp_path / "pairs.jsonl"
    server = EndpointTeacher(chat.url, "m", concurrency=1)
    write_pairs(server, TEXTS[:5], out)
    whole = out.read_text()
    out.write_text(whole + '{"query": "half a li')  # a kill in the middle of a line
    assert write_pairs(server, TEXTS, out) == 7
    assert out.read_text().startswith(whole)
    assert len(out.read_text().splitlines()) == 12


def test_a_server_that_fails_is_named_and_what_came_stays(chat, tmp_path):
    out = tmp_path / "pairs.jsonl"
    refusal = {"error": {"message": "no such model"}}
    chat.faults = [lambda handler, body: False] * 3 + [
        lambda handler, body: send(handler, 404, refusal)
    ]
    server = EndpointTeacher(chat.url, "m", concurrency=1, retries=0)
    with pytest.raises(ValueError, match=r"gave no query for 'Document 3.*no such model"):
        write_pairs(server, TEXTS, out)
    assert 3 <= len(Path(out).read_text().splitlines()) <= 11
    write_pairs(server, TEXTS, out)
    assert len(Path(out).read_text().splitlines()) == 12


def test_missing_input_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no file"):
        main(["questions", "--url", "http://localhost:1/v1", "--model", "m", "--in", "absent.jsonl",
              "--out", str(tmp_path / "o")])  # fmt: skip
