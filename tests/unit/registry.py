"""A package registry on 127.0.0.1 for tests: simple index, npm tarballs, ranges, broken lines."""

import io
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Registry:
    """Serves ``files`` (name to bytes) below ``/files/``, and a page per project.

    Args:
        as_json: Answer the simple index in JSON, else in HTML.
    """

    def __init__(self, *, as_json: bool = True) -> None:
        self.files: dict[str, bytes] = {}
        self.projects: dict[str, list[str]] = {}
        self.as_json = as_json
        self.cut_after: int | None = None  # break the next file transfer after so many bytes
        self.delay = 0.0
        self.requests: list[tuple[str, str | None]] = []  # path and Range header
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.path, self.headers.get("Range")))
                outer._answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, project: str, filename: str, content: bytes) -> None:
        """Publish a file of a project."""
        self.files[filename] = content
        self.projects.setdefault(project, []).append(filename)

    def transfers(self) -> list[str | None]:
        """The Range header of every file request."""
        return [where for path, where in self.requests if "/files/" in path or "/-/" in path]

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = handler.path.strip("/").split("/")
        if parts[0] == "simple" and parts[-1] in self.projects:
            return self._page(handler, self.projects[parts[-1]])
        if parts[-1] in self.files and (parts[0] == "files" or "-" in parts):
            return self._file(handler, self.files[parts[-1]])
        return handler.send_error(404)

    def _page(self, handler: BaseHTTPRequestHandler, names: list[str]) -> None:
        if self.as_json:
            files = ", ".join(
                f'{{"filename": "{n}", "url": "/files/{n}", "hashes": {{}}}}' for n in names
            )
            body = f'{{"meta": {{"api-version": "1.0"}}, "name": "x", "files": [{files}]}}'
            kind = "application/vnd.pypi.simple.v1+json"
        else:
            body = "".join(f'<a href="../../files/{n}#sha256=0">{n}</a>' for n in names)
            kind = "text/html"
        self._send(handler, 200, body.encode(), {"Content-Type": kind})

    def _file(self, handler: BaseHTTPRequestHandler, content: bytes) -> None:
        time.sleep(self.delay)
        where = handler.headers.get("Range")
        start = int(where.removeprefix("bytes=").removesuffix("-")) if where else 0
        if start >= len(content):
            return handler.send_error(416)
        cut, self.cut_after = self.cut_after, None
        body = content[start:]
        self._send(handler, 206 if where else 200, body, {}, sent=body[:cut])

    @staticmethod
    def _send(
        handler: BaseHTTPRequestHandler,
        code: int,
        body: bytes,
        headers: dict[str, str],
        *,
        sent: bytes | None = None,
    ) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.end_headers()
        handler.wfile.write(body if sent is None else sent)


def wheel(project: str, data: dict[str, bytes]) -> bytes:
    """A wheel of version 1.0 that pip accepts, with these files."""
    buffer = io.BytesIO()
    module = project.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{module}/__init__.py", "raise SystemExit('must not be imported')")
        for name, content in data.items():
            archive.writestr(name, content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


def tarball(data: dict[str, bytes]) -> bytes:
    """A gzipped tar with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in data.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
