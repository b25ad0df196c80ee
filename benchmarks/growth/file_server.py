"""A server of a folder on this machine that answers requests for ranges, and fails where it is told to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any


class FileServer:
    """What was asked for, and how to fail: `fault(path, start, content)` gives what is sent in place of the content;
    None cuts the connection after half of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, int]] = []
        self.sent = 0  # bytes
        self.fault: Callable[[str, int, bytes], bytes | None] = lambda path, start, content: content
        self.lock = Lock()
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, files: FileServer, *arguments: Any) -> None:
        self._files = files
        super().__init__(*arguments)

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def _answer(self, with_content: bool) -> None:
        path = self._files.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        whole = path.stat().st_size
        start, stop = 0, whole
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last) + 1, whole) if last else whole
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(stop - start) if with_content else b""
        if with_content:
            with self._files.lock:
                self._files.asked.append((self.path, start))
                self._files.sent += len(content)
            changed = self._files.fault(self.path, start, content)
        else:
            changed = content
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", str(path.stat().st_mtime_ns))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{whole}")
        self.end_headers()
        if not with_content:
            return
        if changed is None:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(changed)


@contextmanager
def served(folder: Path) -> Iterator[FileServer]:
    """A server of the folder's files, at `url`."""
    files = FileServer(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, files))
    server.daemon_threads = True
    files.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def slow(seconds: float) -> Callable[[str, int, bytes], bytes]:
    """A fault: every answer takes so long."""

    def wait(path: str, start: int, content: bytes) -> bytes:
        time.sleep(seconds)
        return content

    return wait
