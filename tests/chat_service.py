"""A chat service on this machine that says what a test tells it to."""

import http.server
import json
import threading
import time


def said(text, prompt_tokens=10, completion_tokens=2) -> bytes:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    body = {"choices": [{"message": {"content": text}}], "usage": usage}
    return json.dumps(body).encode()


class Service(http.server.ThreadingHTTPServer):
    """Answers with what `replies` holds, then with `speak(messages)` for ever."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.requests, self.keys = [], [], []
        self.lock = threading.Lock()
        self.seconds = 0.0  # before an answer
        self.speak = lambda messages: "yes"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append(request)
            server.keys.append(self.headers.get("Authorization"))
            status, body = server.replies.pop(0) if server.replies else (200, None)
        time.sleep(server.seconds)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(
            said(server.speak(request["messages"])) if body is None else body
        )

    def log_message(self, *args):
        pass
