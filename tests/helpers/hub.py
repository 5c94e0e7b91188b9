"""A Hugging Face Hub of the few requests that huggingface_hub makes to read and write weights, on this machine."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_test"
Files = dict[str, bytes]


@dataclass
class Repository:
    private: bool = False
    commits: list[tuple[str, Files]] = field(default_factory=list)  # oldest first
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files) -> str:
        """Add files to the newest ones; return the commit."""
        whole = (self.commits[-1][1] if self.commits else {}) | files
        name = hashlib.sha1(repr((len(self.commits), sorted(whole))).encode()).hexdigest()
        self.commits.append((name, whole))
        return name

    def find(self, revision: str) -> tuple[str, Files] | None:
        revision = self.commits[-1][0] if revision == "main" else self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit[0] == revision), None)


@dataclass
class Hub:
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    uploads: Files = field(default_factory=dict)  # by sha256
    requests: list[str] = field(default_factory=list)


class RefusedError(Exception):
    """A status, and the hub's own code for it."""


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def respond(self) -> None:
        """Answer a request of any kind."""
        self.hub.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            content, headers = self.answer(self.path.partition("?")[0], body)
            status = 200
        except RefusedError as refused:
            status, code = refused.args
            content, headers = json.dumps({"error": code}).encode(), {"X-Error-Code": code, "X-Error-Message": code}
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET = do_POST = do_PUT = respond  # noqa: N815 -- the base class's names

    def answer(self, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        open_to_all = self.command in ("HEAD", "GET") or path.startswith(("/upload/", "/api/validate-yaml"))
        if not open_to_all and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise RefusedError(401, "Unauthorized")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            commit, files = self.find(found[1], found[2].replace("%2F", "/"))
            if found[3] not in files:
                raise RefusedError(404, "EntryNotFound")
            etag = hashlib.sha256(files[found[3]]).hexdigest()
            return files[found[3]], {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            commit, files = self.find(found[1], found[2] or "main")
            info = {"id": found[1], "sha": commit, "private": self.hub.repositories[found[1]].private}
            return to_json(info | {"siblings": [{"rfilename": name} for name in files]})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            files = self.find(found[1], found[2])[1]
            return to_json([{"type": "file", "path": name, "size": len(f), "oid": "0"} for name, f in files.items()])
        if found := re.fullmatch(r"/upload/(\w+)", path):
            self.hub.uploads[found[1]] = body
            return b"", {}
        return self.write(path, body)

    def write(self, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        if path == "/api/validate-yaml":
            return to_json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            repository = self.hub.repositories[name] = Repository(asked.get("visibility", "") == "private")
            repository.private |= bool(asked.get("private"))
            repository.commit({".gitattributes": b""})
            return to_json({"url": f"{self.hub.url}/{name}", "name": name})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            large = {True: "lfs", False: "regular"}
            files = json.loads(body)["files"]
            modes = [(f["path"], large[f["path"].endswith(".safetensors")]) for f in files]
            return to_json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes]})
        if re.fullmatch(r"/[^/]+/[^/]+[.]git/info/lfs/objects/batch", path):
            objects = json.loads(body)["objects"]
            actions = [{"upload": {"href": f"{self.hub.url}/upload/{each['oid']}", "header": {}}} for each in objects]
            done = [each | {"actions": action} for each, action in zip(objects, actions, strict=True)]
            return to_json({"transfer": "basic", "objects": done})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            repository, files = self.hub.repositories[found[1]], {}
            for item in map(json.loads, body.splitlines()):
                value = item["value"]
                if item["key"] == "header" and value.get("parentCommit") not in (None, repository.commits[-1][0]):
                    raise RefusedError(412, "PreconditionFailed")
                if item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                if item["key"] == "lfsFile":
                    files[value["path"]] = self.hub.uploads[value["oid"]]
            commit = repository.commit(files)
            return to_json({"commitUrl": f"{self.hub.url}/{found[1]}/commit/{commit}", "commitOid": commit})
        raise RefusedError(404, "NotFound")

    def find(self, name: str, revision: str) -> tuple[str, Files]:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and "Authorization" not in self.headers):
            raise RefusedError(401, "RepoNotFound")
        commit = repository.find(revision)
        if commit is None:
            raise RefusedError(404, "RevisionNotFound")
        return commit


def to_json(value: Any) -> tuple[bytes, dict[str, str]]:
    return json.dumps(value).encode(), {"Content-Type": "application/json"}


@contextlib.contextmanager
def serve_hub() -> Iterator[Hub]:
    """An empty hub, until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
