"""A small Hub on loopback: what huggingface_hub asks for when it creates, uploads and downloads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = 10 * 1024
"""Files from this size on, and safetensors, go by LFS."""


class Hub:
    """Repositories: name -> commits; and the LFS objects they point to."""

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.received: list[str] = []
        """SHA-256 of each object that was uploaded, in order."""
        self.cut_after: int | None = None
        """Refuse uploads from this one on."""
        self.url = ""

    def commit_id(self, repo: str, number: int) -> str:
        return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()

    def files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        """Commit and files of a revision: main, or a commit's id."""
        commits = self.commits[repo]
        for number, files in enumerate(commits):
            if revision == self.commit_id(repo, number):
                return revision, files
        if revision != "main":
            raise KeyError(revision)
        return self.commit_id(repo, len(commits) - 1), commits[-1]


def is_large(path: str, size: int) -> bool:
    return path.endswith(".safetensors") or size > LARGE


def entry(path: str, content: bytes) -> dict[str, object]:
    """A file as the tree lists it."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if is_large(path, len(content)):
        digest = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return found


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, value: object, status: int = 200, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(value, bytes) else "application/json"
        told = {"Content-Type": kind, "Content-Length": str(len(content))}
        for name, text in {**told, **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self, what: str) -> None:
        code = "RepoNotFound" if what == "repository" else "EntryNotFound"
        self.answer({"error": f"no {what}"}, 404, **{"X-Error-Code": code})

    def do_POST(self) -> None:
        path, body, hub = unquote(urlsplit(self.path).path), self.body(), self.hub
        if path == "/api/repos/create":
            told = json.loads(body)
            repo = f"{told['organization']}/{told['name']}"
            if repo in hub.commits:
                return self.answer({"error": "exists", "url": f"{hub.url}/{repo}"}, 409)
            hub.commits[repo] = [{".gitattributes": b""}]
            hub.private[repo] = told.get("visibility") == "private" or bool(told.get("private"))
            return self.answer({"url": f"{hub.url}/{repo}"})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/(.+?)/preupload/(.+)", path):
            if found[1] not in hub.commits:
                return self.missing("repository")
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if is_large(file["path"], file["size"]) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = []
            for each in json.loads(body)["objects"]:
                told = {"oid": each["oid"], "size": each["size"]}
                if each["oid"] not in hub.objects:
                    told["actions"] = {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}
                objects.append(told)
            return self.answer({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/(.+?)/commit/(.+)", path):
            return self.commit(found[1], body)
        return self.missing("such address")

    def commit(self, repo: str, body: bytes) -> None:
        hub = self.hub
        files = dict(hub.commits[repo][-1])
        for line in body.splitlines():
            told = json.loads(line)
            value = told["value"]
            if told["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif told["key"] == "lfsFile":
                files[value["path"]] = hub.objects[value["oid"]]
            elif told["key"] == "deletedFile":
                del files[value["path"]]
        hub.commits[repo].append(files)
        number = len(hub.commits[repo]) - 1
        oid = hub.commit_id(repo, number)
        self.answer({"commitUrl": f"{hub.url}/{repo}/commit/{oid}", "commitOid": oid})

    def do_PUT(self) -> None:
        oid = self.path.removeprefix("/lfs/")
        if self.hub.cut_after is not None and len(self.hub.received) >= self.hub.cut_after:
            self.close_connection = True
            self.connection.close()  # in the middle of the file
            return
        content = self.body()
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.objects[oid] = content
        self.hub.received.append(oid)
        self.answer({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        try:
            if found := re.fullmatch(r"/api/models/(.+?)/tree/([^/]+)(?:/(.*))?", path):
                _, files = self.hub.files(found[1], found[2])
                under = f"{found[3]}/" if found[3] else ""
                listed = [entry(name, files[name]) for name in files if name.startswith(under)]
                return self.answer(listed)
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                oid, files = self.hub.files(found[1], found[2] or "main")
                siblings = [{"rfilename": name} for name in files]
                told = {"id": found[1], "sha": oid, "siblings": siblings, "tags": []}
                return self.answer({**told, "private": self.hub.private[found[1]]})
            if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                oid, files = self.hub.files(found[1], found[2])
                if found[3] not in files:
                    return self.missing("file")
                content = files[found[3]]
                etag = hashlib.sha256(content).hexdigest()
                return self.answer(content, **{"ETag": f'"{etag}"', "X-Repo-Commit": oid})
        except KeyError:
            return self.missing("repository")
        return self.missing("such address")


@contextmanager
def serve() -> Iterator[Hub]:
    """A Hub that runs while the block does."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
