"""Public files by download: whole, with the hash that is asked for, or not at all."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import URLError

from cfmvc_scvi.io.files import atomic_write

#: Bytes read at a time.
_PIECE = 2**20
#: Seconds without an answer after which a server counts as not there.
_TIMEOUT = 60.0


def download(url: str, path: str | os.PathLike[str], sha256: str | None = None) -> Path:
    """File of a public address, downloaded once.

    Parameters
    ----------
    url
        Address, ``http`` or ``https``.
    path
        Where the file shall be; missing folders are made. A file that is there is not downloaded again, but its hash is
        looked at.
    sha256
        SHA-256 of the file in hexadecimal digits; ``None`` takes any file.

    Returns
    -------
    The path.

    Raises
    ------
    ConnectionError
        When the address cannot be reached or does not serve a file, with what to do instead.
    ValueError
        When the hash is another one, or the address is of another kind. What was downloaded is then removed; a file
        that was there is left.
    """
    path = Path(path).expanduser()
    if path.is_file():
        _check(_hash_of(path), sha256, str(path), "remove it, and it is downloaded again")
        return path
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"`url` is {url!r}; give an address that begins with http:// or https://.")
    try:
        with atomic_write(path, "the download") as aside:
            found = _fetch(url, aside)
            _check(found, sha256, url, "the file there has changed: tell the maintainers, or give a file of your own")
    except _NotServed as error:
        raise ConnectionError(f"{url} {error}. Download it in a browser and put it at {str(path)!r}.") from error
    return path


class _NotServed(Exception):
    """What went wrong on the way; no ``OSError``, which would be taken for one of the disk."""


def _fetch(url: str, aside: Path) -> str:
    """Write what an address serves; its hash."""
    digest, n_bytes = hashlib.sha256(), 0
    try:
        answer = urllib.request.urlopen(url, timeout=_TIMEOUT)
    except (URLError, TimeoutError) as error:
        raise _NotServed(f"cannot be reached: {error}") from error
    with answer, aside.open("wb") as file:
        # some servers answer programs with a page for browsers, or with nothing, and no error
        if answer.status != 200 or answer.headers.get_content_type() == "text/html":
            raise _NotServed(f"serves no file to programs (status {answer.status})")
        while piece := _read(answer):
            digest.update(piece)
            n_bytes += file.write(piece)
        expected = answer.headers.get("Content-Length")
    if expected is not None and n_bytes != int(expected):
        raise _NotServed(f"broke off after {n_bytes} of {expected} bytes: try again")
    return digest.hexdigest()


def _read(answer: HTTPResponse) -> bytes:
    try:
        return answer.read(_PIECE)
    except (HTTPException, OSError) as error:
        raise _NotServed(f"broke off: {error}") from error


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(found: str, expected: str | None, what: str, remedy: str) -> None:
    if expected is not None and found != expected.lower():
        raise ValueError(f"{what} has the SHA-256 {found}, not {expected.lower()}: {remedy}.")
