"""A chat service on this machine that says, or does, what a test tells it to."""

import http.server
import json
import threading
import time
from collections.abc import Callable


def said(text, prompt_tokens=10, completion_tokens=2) -> bytes:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    body = {"choices": [{"message": {"content": text}}], "usage": usage}
    return json.dumps(body).encode()


class Service(http.server.ThreadingHTTPServer):
    """Answers with what `replies` holds, then with `speak(messages)` for ever.

    A reply is a status and a body, perhaps with headers; or a function of the handler,
    which then writes whatever it likes.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[tuple | Callable] = []
        self.requests, self.keys = [], []
        self.lock = threading.Lock()
        self.seconds = 0.0  # before an answer
        self.speak = lambda messages: "yes"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """Keep quiet: clients that give up are part of the tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append(request)
            server.keys.append(self.headers.get("Authorization"))
            reply = server.replies.pop(0) if server.replies else (200, None)
        time.sleep(server.seconds)
        if callable(reply):
            reply(self)
            return
        status, body, *headers = reply
        if body is None:
            answer = server.speak(request["messages"])
            body = said(answer) if isinstance(answer, str) else answer
        self.write(status, body, *headers)

    def write(self, status: int, body: bytes, headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass
