"""A real server on loopback: other clients, a client that leaves, overload, stopping."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import openai
import pytest

import st_jv5
from st_jv5 import cli
from st_jv5.serve import Limits
from st_jv5.serve.app import create_app
from st_jv5.task_table import BASE, TASKS
from st_jv5.teacher import EndpointTeacher
from st_jv5.teacher.store import Space
from tests import children
from tests.serve.conftest import ATOL, NAME, running

SETTINGS = ("--port", "0", "--name", NAME, "--access-log")


def client_of(address: str, **settings) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, **settings)


def ask(address: str, body: dict, timeout: float = 60) -> dict:
    headers = {"Content-Type": "application/json"}
    raw = json.dumps({"model": NAME, "task": BASE, **body}).encode()
    with urlopen(Request(f"{address}/v1/embeddings", raw, headers), timeout=timeout) as answer:
        return json.load(answer)


def until(true, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_openai_client_gets_the_vectors_of_encode(address, served, texts):
    client = client_of(address)
    for task in [*TASKS, BASE, "query"]:
        for dim in (8, 48):
            wanted = st_jv5.encode(served, texts[:4], task, dim=dim)
            for asked in (
                {"model": f"{NAME}/{task}"},  # the client asks for base64, and reads it
                {"model": NAME, "extra_body": {"task": task}, "encoding_format": "float"},
            ):
                answer = client.embeddings.create(
                    input=texts[:4], dimensions=dim, user="me", **asked
                )
                found = [row.embedding for row in answer.data]
                np.testing.assert_allclose(found, wanted, atol=ATOL)
    assert {one.id for one in client.models.list()} >= {NAME, f"{NAME}/query"}
    with pytest.raises(openai.BadRequestError, match="unknown task 'x'") as refused:
        client.embeddings.create(input="a", model=f"{NAME}/x")
    assert refused.value.code == "unknown_task"


def test_our_endpoint_teacher_gets_the_vectors_of_encode(address, served, texts):
    teacher = EndpointTeacher(f"{address}/v1", f"{NAME}/clustering", batch_size=7)
    space = Space("m", revision="", prompt="", max_tokens=64, dim=48)
    assert teacher.dim() == 48
    found = teacher.embed(texts, space)
    np.testing.assert_allclose(found, st_jv5.encode(served, texts, "clustering"), atol=ATOL)


def test_many_clients_of_all_tasks_at_once_get_their_own_vectors(address, served, texts):
    tasks = [*TASKS, BASE, "query"]
    wanted = {task: st_jv5.encode(served, texts, task) for task in tasks}

    def one(number: int) -> None:
        task, i = tasks[number % len(tasks)], number % len(texts)
        told = ask(address, {"input": [texts[i], texts[-i]], "task": task})
        found = [row["embedding"] for row in told["data"]]
        np.testing.assert_allclose(found, wanted[task][[i, -i]], atol=ATOL)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(200)))


def test_a_client_that_leaves_has_its_waiting_texts_dropped(served, held):
    app = create_app(served, [NAME])
    with running(app) as address, ThreadPoolExecutor() as pool:
        first = pool.submit(ask, address, {"input": "first"})
        held.began.acquire()
        host, port = address.removeprefix("http://").split(":")
        body = json.dumps({"model": NAME, "input": ["gone"] * 50, "task": BASE}).encode()
        with socket.create_connection((host, int(port))) as leaving:
            head = "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            leaving.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: metric(address, "waiting_texts") == 50)
        until(lambda: metric(address, "waiting_texts") == 0)
        held.release()
        first.result()
        assert held.batches == [["first"]]
        assert metric(address, 'requests_total{path="/v1/embeddings",status="499"}') == 1


def metric(address: str, name: str) -> float:
    with urlopen(f"{address}/metrics") as told:
        found = re.search(rf"^st_jv5_{re.escape(name)} (\S+)$", told.read().decode(), re.M)
    return float(found[1]) if found else 0.0


def test_beyond_what_may_wait_clients_are_told_429_and_when_to_come_again(served, held):
    limits = Limits(max_tokens=600, max_waiting_tokens=600)  # texts are cut to 64 tokens
    with running(create_app(served, [NAME], limits)) as address, ThreadPoolExecutor() as pool:
        first = pool.submit(ask, address, {"input": "first"})
        held.began.acquire()
        second = pool.submit(ask, address, {"input": ["word " * 99] * 8})
        until(lambda: metric(address, "waiting_texts") == 8)
        with pytest.raises(HTTPError) as refused:
            ask(address, {"input": ["word " * 99] * 8})
        assert refused.value.code == 429
        assert int(refused.value.headers["Retry-After"]) >= 1
        assert json.load(refused.value)["error"]["type"] == "rate_limit_error"
        with pytest.raises(openai.RateLimitError):
            client_of(address).embeddings.create(input=["w " * 99] * 3, model=f"{NAME}/query")
        held.release()
        assert len(second.result()["data"]) == 8
        first.result()


def test_more_open_requests_than_may_be_are_refused_but_health_answers(served, held):
    app = create_app(served, [NAME], Limits(max_requests=1))
    with running(app) as address, ThreadPoolExecutor() as pool:
        first = pool.submit(ask, address, {"input": "first"})
        held.began.acquire()
        with pytest.raises(HTTPError) as refused:
            ask(address, {"input": "second"})
        assert (refused.value.code, refused.value.headers["Retry-After"]) == (429, "1")
        for path in ("/health", "/ready", "/metrics"):
            assert urlopen(address + path).status == 200
        held.release()
        first.result()


def test_a_request_that_takes_too_long_is_told_and_dropped(served, held):
    app = create_app(served, [NAME], Limits(timeout_seconds=0.2))
    with running(app) as address, ThreadPoolExecutor() as pool:
        first = pool.submit(ask, address, {"input": "first"})
        held.began.acquire()
        with pytest.raises(HTTPError) as refused:
            ask(address, {"input": "second"})
        assert (refused.value.code, json.load(refused.value)["error"]["code"]) == (503, "timeout")
        assert metric(address, "waiting_texts") == 0
        held.release()
        with pytest.raises(HTTPError):
            first.result()


def test_a_body_that_does_not_come_to_its_end_is_not_waited_for(served):
    with running(create_app(served, [NAME], Limits(read_seconds=0.3))) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as slow:
            head = "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            slow.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_a_body_without_a_length_is_read_up_to_the_limit(served):
    def parts():
        for _ in range(100):
            yield b"x" * 1000

    with running(create_app(served, [NAME], Limits(max_bytes=5000))) as address:
        told = Request(f"{address}/v1/embeddings", parts(), {"Content-Type": "application/json"})
        with pytest.raises((URLError, ConnectionError)) as refused:
            urlopen(told)
        if isinstance(refused.value, HTTPError):
            assert refused.value.code == 413
        else:  # the server is done with it while the client still sends
            reason = getattr(refused.value, "reason", refused.value)
            assert isinstance(reason, ConnectionError)


def test_sigterm_finishes_what_was_taken(processes, saved_once, tmp_path):
    secret = "nobody may read this"
    folder = shutil.copytree(saved_once, tmp_path / "model")
    (tmp_path / "log").touch()
    serve = ["serve", str(folder), *SETTINGS]
    server = processes.Process(
        target=children.command,
        args=(tmp_path / "log", serve),
        kwargs={"ST_JV5_API_KEY": "key"},
    )
    server.start()
    try:
        told: list[str] = []

        def listening() -> bool:
            told[:] = re.findall(r"running on (\S+)", (tmp_path / "log").read_text())
            assert server.is_alive(), (tmp_path / "log").read_text()
            return bool(told)

        until(listening, 150)  # torch may be imported anew
        client = openai.OpenAI(base_url=f"{told[0]}/v1", api_key="key", max_retries=0)
        texts = [f"{secret} {i} " * 9 for i in range(1000)]
        answers: list[int] = []

        def work(task: str) -> None:
            answer = client.embeddings.create(input=texts, model=f"{NAME}/{task}")
            answers.append(len(answer.data))

        threads = [threading.Thread(target=work, args=(task,)) for task in TASKS]
        for thread in threads:
            thread.start()
        keyed = Request(f"{told[0]}/metrics", headers={"Authorization": "Bearer key"})
        until(lambda: all_wait(keyed))
        server.terminate()
        for thread in threads:
            thread.join()
        assert answers == [1000] * 4
        server.join(30)
        assert server.exitcode in (0, -signal.SIGTERM)
        with pytest.raises(openai.APIConnectionError):
            client.models.list()
    finally:
        server.kill()
    text = (tmp_path / "log").read_text()
    assert '"POST /v1/embeddings HTTP/1.1" 200' in text
    assert secret not in text
    assert "Traceback" not in text


def all_wait(request: Request) -> bool:
    """Whether all four requests have been taken, and not all of them computed."""
    told = urlopen(request).read().decode()
    taken = re.findall(r"^st_jv5_texts_total\{.*\} (\S+)", told, re.M)
    waiting = float(re.search(r"^st_jv5_waiting_texts (\S+)", told, re.M)[1])
    return taken == ["1000.0"] * 4 and waiting > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "retreival"], "did you mean 'retrieval'"),
        (["--max-texts", "0"], "max_texts must be positive, not 0"),
        (["--max-tokens", "1000000"], "must not be more than max_waiting_tokens"),
        (["--api-key-file", "{folder}/empty"], "holds no key"),
        (["--api-key-file", "{folder}/absent"], "absent"),
    ],
)
def test_settings_that_cannot_be_are_told_before_the_server_starts(
    saved, tmp_path, arguments, message
):
    (tmp_path / "empty").write_text("\n")
    given = [argument.format(folder=tmp_path) for argument in arguments]
    with pytest.raises(SystemExit, match=message):
        cli.main(["serve", saved, *given])
