"""A hub on loopback: what the real `huggingface_hub` client asks of huggingface.co, for downloads and uploads.

It keeps repositories in memory, each commit with all its files; it counts requests and bytes, and misbehaves as told.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_state import Hub, Repo, git_oid, is_lfs

PAGE = 7
"""Entries to a page of the tree, so that clients must turn it."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing: the tests look at what is counted."""

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else self._chunked()
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        self.fault = self.hub.fault_for(request)
        if self.fault is not None and self.fault.status:
            self._answer(self.fault.status, {"error": "made to fail"}, **self.fault.headers)
            return
        for pattern, method in ROUTES:
            if match := pattern.fullmatch(request):
                try:
                    method(self, *match.groups())
                except BrokenPipeError:
                    self.close_connection = True
                return
        self._answer(404, {"error": f"no route for {request}"})

    def _chunked(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return b""
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    # Answers

    def _answer(self, status: int, content: Any = None, **headers: str) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _repo(self, repo_id: str) -> Repo | None:
        """The repository, where the client may see it; answers otherwise."""
        repo = self.hub.repos.get(repo_id)
        known = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if repo is None or (repo.private and not known):
            self._answer(404 if known else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        if repo.gated and not known:
            self._answer(403, {"error": "Access to it is restricted"}, X_Error_Code="GatedRepo")
            return None
        return repo

    def _files(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repo = self._repo(repo_id)
        if repo is None:
            return None
        found = repo.at(revision)
        if found is None:
            self._answer(404, {"error": "Revision not found"}, X_Error_Code="RevisionNotFound")
        return found

    # Reading

    def whoami(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._answer(401, {"error": "Invalid token"})
        else:
            self._answer(200, {"name": "me", "type": "user", "auth": {"accessToken": {"role": "write"}}, "orgs": []})

    def info(self, repo_id: str, revision: str = "main") -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return
        found = repo.at(revision) or (("0" * 40, {}) if not repo.commits and revision == "main" else None)
        if found is None:
            self._answer(404, {"error": "Revision not found"}, X_Error_Code="RevisionNotFound")
            return
        siblings = [{"rfilename": name} for name in sorted(found[1])]
        told = {"id": repo_id, "sha": found[0], "private": repo.private, "gated": False, "siblings": siblings}
        self._answer(200, {**told, "tags": [], "downloads": 0, "likes": 0, "disabled": False})

    def tree(self, repo_id: str, revision: str, _: str | None = None) -> None:
        found = self._files(repo_id, revision)
        if found is None:
            return
        names = sorted(found[1])
        start = int(self.query.get("cursor", ["0"])[0])
        entries = [self._entry(name, found[1][name]) for name in names[start : start + PAGE]]
        more = start + PAGE < len(names)
        cursor = f"{self.hub.endpoint}{urlsplit(self.path).path}?recursive=true&cursor={start + PAGE}"
        self._answer(200, entries, **({"Link": f'<{cursor}>; rel="next"'} if more else {}))

    def paths_info(self, repo_id: str, revision: str) -> None:
        found = self._files(repo_id, revision)
        if found is None:
            return
        form = json.loads(self.body) if self.body[:1] == b"{" else parse_qs(self.body.decode())
        wanted = form["paths"]
        self._answer(200, [self._entry(name, found[1][name]) for name in wanted if name in found[1]])

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": git_oid(data)}
        if is_lfs(name, len(data)):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        found = self._files(repo_id, revision)
        if found is None:
            return
        sha, files = found
        if name not in files:
            self._answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
            return
        data = files[name]
        lfs = is_lfs(name, len(data))
        etag = hashlib.sha256(data).hexdigest() if lfs else git_oid(data)
        data = self.hub.lies.get(name, data)
        total, start, stop = len(data), 0, len(data)
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if ranged:
            start = int(ranged[1])
            stop = min(total, int(ranged[2]) + 1) if ranged[2] else total
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(stop - start))
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", sha)
        if lfs:
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(total))
        self.end_headers()
        if self.command != "HEAD":
            self._send(name, data[start:stop])

    def _send(self, name: str, data: bytes) -> None:
        if self.fault is not None:
            data = data[: self.fault.cut_after]
            self.close_connection = True
        with self.hub.lock:
            self.hub.sent[name] = self.hub.sent.get(name, 0) + len(data)
        self.wfile.write(data)

    # Writing

    def create(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._answer(401, {"error": "Invalid token"})
            return
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if repo_id in self.hub.repos:
            self._answer(409, {"error": "You already created this dataset repo", "url": self._url(repo_id)})
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repos[repo_id] = Repo(private=bool(private))
        self._answer(200, {"url": self._url(repo_id)})

    def _url(self, repo_id: str) -> str:
        return f"{self.hub.endpoint}/datasets/{repo_id}"

    def preupload(self, repo_id: str, _: str) -> None:
        asked = json.loads(self.body)["files"]
        repo = self._repo(repo_id)
        if repo is None:
            return
        held = (repo.at("main") or ("", {}))[1]
        answers = []
        for file in asked:
            mode = "lfs" if is_lfs(file["path"], file["size"]) else "regular"
            data = held.get(file["path"])
            oid = None if data is None else self._entry(file["path"], data).get("lfs", {"oid": git_oid(data)})["oid"]
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer(200, {"files": answers})

    def lfs_batch(self, repo_id: str) -> None:
        objects = []
        for one in json.loads(self.body)["objects"]:
            told: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.lfs:
                put, verify = f"{self.hub.endpoint}/lfs/{one['oid']}", f"{self.hub.endpoint}/lfs-verify/{repo_id}"
                told["actions"] = {"upload": {"href": put}, "verify": {"href": verify}}
            objects.append(told)
        self._answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._answer(400, {"error": "the content is not that of the oid"})
            return
        with self.hub.lock:
            self.hub.lfs[oid] = self.body
            self.hub.received += len(self.body)
        self._answer(200)

    def lfs_verify(self, _: str) -> None:
        asked = json.loads(self.body)
        held = self.hub.lfs.get(asked["oid"])
        self._answer(200 if held is not None and len(held) == asked["size"] else 404, {})

    def commit(self, repo_id: str, _: str) -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return
        files = dict((repo.at("main") or ("", {}))[1])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                self.hub.received += len(files[value["path"]])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        sha = repo.commit(files)
        url = f"{self._url(repo_id)}/commit/{sha}"
        self._answer(200, {"success": True, "commitUrl": url, "commitOid": sha, "hookOutput": ""})

    def tag(self, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return
        name, found = json.loads(self.body)["tag"], repo.at(revision)
        if name in repo.tags or found is None:  # a tag is not moved
            self._answer(409 if found else 404, {"error": "Tag reference exists already" if found else "no revision"})
            return
        repo.tags[name] = found[0]
        self._answer(200, {})

    def untag(self, repo_id: str, name: str) -> None:
        repo = self._repo(repo_id)
        if repo is not None:
            self._answer(200 if repo.tags.pop(name, None) else 404, {})

    def refs(self, repo_id: str) -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return
        tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": at} for name, at in repo.tags.items()]
        heads = [{"name": "main", "ref": "refs/heads/main", "targetCommit": at} for at, _ in repo.commits[-1:]]
        self._answer(200, {"tags": tags, "branches": heads, "converts": []})

    def yaml(self) -> None:
        self._answer(200, {"errors": [], "warnings": []})


_REPO = r"([^/ ]+/[^/ ]+)"
ROUTES: list[tuple[re.Pattern[str], Callable[..., None]]] = [
    (re.compile(pattern), method)
    for pattern, method in (
        (r"GET /api/whoami-v2", _Handler.whoami),
        (rf"GET /api/datasets/{_REPO}", _Handler.info),
        (rf"GET /api/datasets/{_REPO}/revision/(.+)", _Handler.info),
        (rf"GET /api/datasets/{_REPO}/tree/([^/]+)(/.*)?", _Handler.tree),
        (rf"POST /api/datasets/{_REPO}/paths-info/(.+)", _Handler.paths_info),
        (rf"(?:GET|HEAD) /datasets/{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
        (r"POST /api/repos/create", _Handler.create),
        (rf"POST /api/datasets/{_REPO}/preupload/(.+)", _Handler.preupload),
        (rf"POST /datasets/{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
        (r"PUT /lfs/(\w+)", _Handler.lfs_put),
        (rf"POST /lfs-verify/{_REPO}", _Handler.lfs_verify),
        (rf"POST /api/datasets/{_REPO}/commit/(.+)", _Handler.commit),
        (rf"POST /api/datasets/{_REPO}/tag/(.+)", _Handler.tag),
        (rf"DELETE /api/datasets/{_REPO}/tag/(.+)", _Handler.untag),
        (rf"GET /api/datasets/{_REPO}/refs", _Handler.refs),
        (r"POST /api/validate-yaml", _Handler.yaml),
    )
]


class Running:
    """`with Running() as hub:` serves it until the block is left."""

    def __enter__(self) -> Hub:
        hub = Hub()
        handler = type("Handler", (_Handler,), {"hub": hub})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        hub.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return hub

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
