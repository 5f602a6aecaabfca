"""Downloads from a server of this machine: once, whole, with the right hash, or an error and no file."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cfmvc_scvi.data.download import download

CONTENT = b"counts" * 50_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves one file, one that breaks off, and a page for browsers."""

    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(202 if self.path == "/challenge" else 200)
        kind = "text/html" if self.path == "/page" else "application/octet-stream"
        body = CONTENT[:100] if self.path == "/short" else CONTENT
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    Handler.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as one:
        thread = threading.Thread(target=one.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{one.server_address[1]}"
        one.shutdown()
        thread.join()


@pytest.mark.parametrize("sha256", [SHA256, SHA256.upper(), None])
def test_a_file_is_downloaded_once(server, tmp_path, sha256):
    path = tmp_path / "cache" / "file.h5ad"
    for _ in range(2):
        assert download(f"{server}/file", path, sha256) == path and path.read_bytes() == CONTENT
    assert Handler.asked == ["/file"]


def test_another_hash_leaves_no_file(server, tmp_path):
    with pytest.raises(ValueError, match=f"has the SHA-256 {SHA256}, not 00"):
        download(f"{server}/file", tmp_path / "file.h5ad", "00" * 32)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_hash_is_refused_and_left(server, tmp_path):
    path = tmp_path / "file.h5ad"
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match="remove it, and it is downloaded again"):
        download(f"{server}/file", path, SHA256)
    assert path.read_bytes() == b"mine" and Handler.asked == []


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("missing", "404"),
        ("page", "serves no file to programs"),
        ("challenge", "status 202"),
        ("short", "(broke off after 100 of|IncompleteRead)"),
    ],
)
def test_what_is_no_file_is_refused(server, tmp_path, page, says):
    with pytest.raises(ConnectionError, match=says) as error:
        download(f"{server}/{page}", tmp_path / "file.h5ad", SHA256)
    assert "Download it in a browser" in str(error.value) and list(tmp_path.iterdir()) == []


def test_no_server_and_no_address(tmp_path):
    with pytest.raises(ConnectionError, match="cannot be reached"):
        download("http://127.0.0.1:9/file", tmp_path / "file.h5ad")
    with pytest.raises(ValueError, match="begins with http"):
        download("file:///etc/hosts", tmp_path / "file.h5ad")
