"""What huggingface_hub asks of a hub for an upload of small files, on this machine."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(refuse: int = 0):
    """Yield its URL, the requests (method, path) and the files that were committed. ``refuse``: the status of every
    answer."""
    asked, files = [], {}

    class Handler(BaseHTTPRequestHandler):
        def answer(self, value, status=200):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            asked.append(("POST", self.path.split("?")[0], body))
            if refuse:
                return self.answer({"error": "refused"}, refuse)
            if self.path.startswith("/api/repos/create"):
                return self.answer({"url": f"http://{self.headers['Host']}/me/a", "name": "me/a"})
            if "/preupload/" in self.path:
                wanted = json.loads(body)["files"]
                return self.answer(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]}
                )
            if "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                url = f"http://{self.headers['Host']}/me/a/commit/{COMMIT}"
                return self.answer({"commitUrl": url, "commitOid": COMMIT})
            if self.path == "/api/validate-yaml":  # the front matter of the card
                front = json.loads(body)["content"].split("---\n")[1]
                return self.answer({"errors": [] if yaml.safe_load(front) else [{"message": "empty"}], "warnings": []})
            return self.answer({}, 404)

        def do_GET(self):
            asked.append(("GET", self.path.split("?")[0], b""))
            self.answer({"id": "me/a", "sha": COMMIT, "siblings": []}, refuse or 200)

        def log_message(self, *_):
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked, files
    finally:
        server.shutdown()
        server.server_close()
