"""A local server of Message Batches that can fail in every way that the real one can."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.parse import parse_qs, urlsplit

KEY = "sk-test-3f9c1b7e"
STATUS = {"401": "authentication_error", "400": "invalid_request_error", "429": "rate_limit_error"}


def spanish(text: str) -> str:
    """What the model makes of a text."""
    return f"ES {text[::-1]}"


def succeeded(text: str, stop_reason: str = "end_turn", usage: tuple[int, int] = (20, 10)) -> dict:
    content = [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": text}]
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": content if text else [],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": usage[0], "output_tokens": usage[1]},
    }
    return {"type": "succeeded", "message": message}


def errored(kind: str) -> dict:
    return {"type": "errored", "error": {"type": "error", "error": {"type": kind, "message": "about: the text"}}}


class FakeServer(ThreadingHTTPServer):
    """``result`` gives the result of a text at its n-th submission (from 1).

    ``faults[endpoint]`` is a list of what goes wrong, one for each call of create, list, look, results, in turn (None:
    nothing): a status ("429"), "drop" (no answer), "page" (a proxy's HTML); each of these after "accept " if a batch is
    accepted all the same; "cut" (the answer ends in the middle), "short" (before the announced length), "few" (a
    result is left out).
    """

    daemon_threads = True

    def __init__(self, result: Callable[[str, int], dict] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.result = result or (lambda text, number: succeeded(spanish(text)))
        self.faults: dict[str, list] = {}
        self.after_accepting: Callable[[], None] = lambda: None
        self.retry_after: str | None = None
        self.looks = 1  # at a batch before it has ended
        self.numbers = count()
        self.batches: dict[str, dict] = {}  # the newest last
        self.paid: Counter[str] = Counter()  # texts, by how often they were accepted
        self.calls: Counter[str] = Counter()  # by endpoint
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def accept(self, requests: list[dict]) -> str:
        ids = [request["custom_id"] for request in requests]
        assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", i) for i in ids)
        assert len(set(ids)) == len(ids) > 0
        name = f"msgbatch_{next(self.numbers):04}"
        lines = []
        for request in requests:
            text = request["params"]["messages"][0]["content"]
            self.paid[text] += 1
            if (result := self.result(text, self.paid[text])) is not None:
                lines.append({"custom_id": request["custom_id"], "result": result})
        now = datetime.now(UTC).isoformat()
        self.batches[name] = {"lines": lines, "created": now, "looks": self.looks, "requests": requests}
        self.after_accepting()
        return name

    def foreign(self, size: int) -> None:
        """A batch of somebody else's."""
        lines = [{"custom_id": f"other-{i}", "result": succeeded("?")} for i in range(size)]
        now = datetime.now(UTC).isoformat()
        self.batches[f"msgbatch_{next(self.numbers):04}"] = {"lines": lines, "created": now, "looks": self.looks}

    def describe(self, name: str) -> dict:
        batch = self.batches[name]
        ended = batch["looks"] <= 0
        counts = Counter(line["result"]["type"] if ended else "processing" for line in batch["lines"])
        kinds = ("processing", "succeeded", "errored", "canceled", "expired")
        archived = batch.get("archived", False)
        return {
            "id": name,
            "type": "message_batch",
            "created_at": batch["created"],
            "expires_at": batch["created"],
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": {kind: counts[kind] for kind in kinds},
            "results_url": f"{self.url}/v1/messages/batches/{name}/results" if ended and not archived else None,
        }


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self._answer("create", lambda: self.server.describe(self.server.accept(body["requests"])))

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        name, _, rest = url.path.removeprefix("/v1/messages/batches").strip("/").partition("/")
        with self.server.lock:
            if not name:
                self._answer("list", lambda: self._page({k: v[0] for k, v in parse_qs(url.query).items()}))
            elif name not in self.server.batches:
                self._answer("look", lambda: self._send(404, {"type": "not_found_error"}))
            elif rest:
                self._answer("results", lambda: self.server.batches[name]["lines"])
            else:
                self._answer("look", lambda: self._look(name))

    def _look(self, name: str) -> dict:
        self.server.batches[name]["looks"] -= 1
        return self.server.describe(name)

    def _page(self, query: dict[str, str]) -> dict:
        names = list(reversed(self.server.batches))
        start = names.index(query["after_id"]) + 1 if "after_id" in query else 0
        page = names[start : start + int(query.get("limit", 20))]
        for name in page:  # a batch also comes to its end where nobody asks for it by name
            self.server.batches[name]["looks"] -= query.get("limit") != "1"
        more = start + len(page) < len(names)
        ends = {"first_id": page[0], "last_id": page[-1]} if page else {"first_id": None, "last_id": None}
        return {"data": [self.server.describe(name) for name in page], "has_more": more, **ends}

    def _answer(self, endpoint: str, what: Callable) -> None:
        self.server.calls[endpoint] += 1
        faults = self.server.faults.get(endpoint, [])
        fault = faults.pop(0) if faults else None
        if (
            self.headers.get("authorization", "").removeprefix("Bearer ") != KEY
            and self.headers.get("x-api-key") != KEY
        ):
            fault = "401"
        if fault and fault.startswith("accept "):
            answer, fault = what(), fault.removeprefix("accept ")
            what = lambda: answer  # noqa: E731
        if fault == "drop":
            self.connection.close()
        elif fault == "page":
            self._write(200, b"<html>hello</html>", {"content-type": "text/html"})
        elif fault and fault.isdigit():
            # Some servers quote what they were sent.
            said = f"no: {self.headers.get('authorization')} {self.headers.get('x-api-key')}"
            self._send(int(fault), {"type": STATUS.get(fault, "api_error"), "message": said})
        elif (answer := what()) is not None:
            self._give(answer, fault)

    def _give(self, answer: dict | list, fault: str | None) -> None:
        if isinstance(answer, dict):
            return self._write(200, json.dumps(answer).encode()[: 20 if fault == "cut" else None])
        lines = answer[:-1] if fault == "few" else answer
        body = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        cut = body[: len(body) // 2 + 3] if fault in ("cut", "short") else body
        return self._write(200, cut, {"content-length": str(len(body))} if fault == "short" else {})

    def _send(self, status: int, error: dict) -> None:
        headers = {"retry-after": self.server.retry_after} if self.server.retry_after else {}
        body = {"type": "error", "error": {"message": "not found"} | error}
        self._write(status, json.dumps(body).encode(), headers)

    def _write(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        try:
            self.send_response(status)
            for name, value in ({"content-type": "application/json"} | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client is gone: killed, as it should be
