"""A Hub on this machine: the calls with which `huggingface_hub` lists and fetches the files of one data set."""

import hashlib
import json
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

REVISION = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves the files in ``folder`` as data set ``name``; ``fetched`` counts the downloads of each.

    Args:
        cut_short: files that end in their middle, as where a connection breaks, the first time they are asked for.
    """

    def __init__(self, name: str, folder: Path, cut_short: set[str] = frozenset()) -> None:
        self.name, self.folder, self.cut_short = name, folder, set(cut_short)
        self.fetched: Counter[str] = Counter()

    def __enter__(self) -> "FakeHub":
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        resolved = f"/datasets/{self.name}/resolve/{REVISION}/"
        if path == f"/api/datasets/{self.name}/revision/main":
            send(request, {"id": self.name, "sha": REVISION, "siblings": [], "tags": []})
        elif path == f"/api/datasets/{self.name}/tree/{REVISION}":
            send(request, [self.entry(file) for file in sorted(self.folder.rglob("*")) if file.is_file()])
        elif path.startswith(resolved) and (self.folder / path.removeprefix(resolved)).is_file():
            self.send_file(request, path.removeprefix(resolved))
        else:
            request.send_error(404)

    def entry(self, file: Path) -> dict[str, object]:
        path = file.relative_to(self.folder).as_posix()
        return {"type": "file", "path": path, "size": file.stat().st_size, "oid": etag(file)}

    def send_file(self, request: BaseHTTPRequestHandler, path: str) -> None:
        file = self.folder / path
        content = file.read_bytes()
        first, _, _ = request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        content = content[int(first) :]
        request.send_response(206 if int(first) else 200)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("ETag", f'"{etag(file)}"')
        request.send_header("X-Repo-Commit", REVISION)
        request.end_headers()
        if request.command == "HEAD":
            return
        self.fetched[path] += 1
        if path in self.cut_short:
            self.cut_short.remove(path)
            content = content[: len(content) // 2]
            request.close_connection = True
        request.wfile.write(content)


def send(request: BaseHTTPRequestHandler, said: object) -> None:
    content = json.dumps(said).encode()
    request.send_response(200)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)


def etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
