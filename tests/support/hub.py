"""A stand-in for the hub on this machine: one repository, served as huggingface_hub requests it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve_repository(
    repository: str, folder: Path, kind: str = "models", fault: str | None = None
) -> Iterator[tuple[str, list[str]]]:
    """The endpoint that serves `folder` as `repository`, branch `main` and tag `v1`, and the paths requested of it.

    `kind` is models or datasets. `fault`: "gated" (the terms are not accepted), "broken" (every answer is a server
    error) or "cut" (the connection ends in the middle of each weight file).
    """
    requested: list[str] = []
    api = f"/api/{kind}/{repository}"
    files_at = f"/{repository}/resolve" if kind == "models" else f"/datasets/{repository}/resolve"

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            requested.append(path)
            if fault == "gated":
                return self._send(403, b"", body, error="GatedRepo")
            if fault == "broken":
                return self._send(501, b"", body)
            for revision in ("main", "v1", COMMIT):
                if path in (f"{api}/revision/{revision}", api):
                    files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                    info = {"_id": "0", "id": repository, "sha": COMMIT, "siblings": files, "tags": []}
                    return self._send(200, json.dumps(info).encode(), body)
                if path == f"{api}/tree/{revision}":
                    files = [
                        {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0"} for f in folder.iterdir()
                    ]
                    return self._send(200, json.dumps(files).encode(), body)
                prefix = f"{files_at}/{revision}/"
                if path.startswith(prefix) and (folder / path.removeprefix(prefix)).is_file():
                    return self._send(200, (folder / path.removeprefix(prefix)).read_bytes(), body)
                if path.startswith((prefix, f"{api}/tree/{revision}/")):
                    return self._send(404, b"", body, error="EntryNotFound")
            known = path.startswith((f"{api}/", f"{files_at}/"))
            self._send(404, b"", body, error="RevisionNotFound" if known else "RepoNotFound")

        def _send(self, status: int, data: bytes, body: bool, error: str | None = None) -> None:
            etag, whole = hashlib.sha256(data).hexdigest(), len(data)
            first, dash, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
            if status == 200 and dash:  # Parquet is read from its end
                start = int(first) if first else whole - int(last)
                status, data = 206, data[start : int(last) + 1 if first and last else whole]
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{whole}")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{etag}"')
            if error:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            if body:
                cut = fault == "cut" and self.path.endswith(".safetensors")
                self.wfile.write(data[: len(data) // 2] if cut else data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requested
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
