"""Files that are there whole or not at all: written aside, synced, then renamed."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from anndata import AnnData

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

_REASONS = {
    errno.ENOSPC: "the disk is full: free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another folder",
    errno.EFBIG: "a file may not grow that large there: raise the limit or choose another folder",
    errno.EROFS: "the file system is read-only: choose a folder that can be written to",
    errno.EACCES: "there is no permission to write there: choose a folder that can be written to",
    errno.EPERM: "there is no permission to write there: choose a folder that can be written to",
    errno.EEXIST: "a part of the path is a file, not a folder: choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another folder",
}


#: Up to this size in bytes, space is reserved to see whether it can be had; beyond, only the free space is looked at.
_LARGEST_PROBE = 2**30


@contextmanager
def atomic_write(
    path: str | os.PathLike, what: str = "the file", *, folder: bool = False, shared: bool = False
) -> Iterator[Path]:
    """Yield a path to write to; on leaving the block, what was written there takes the place of ``path`` at once.

    A reader sees the old content or the new content, never a part of either, even when the process is killed or the
    machine stops. If the block raises, what was written is removed and ``path`` is as it was.

    Parameters
    ----------
    path
        The file or folder that shall be there in the end. Missing parents are made.
    what
        What is being written, for the message of an error.
    folder
        Yield an empty folder instead of the name of a file; ``path`` must not exist, or be an empty folder.
    shared
        Other processes may be writing to ``path`` too: what they, or killed ones, have written aside is left there.

    Raises
    ------
    FileExistsError
        With ``folder``, when ``path`` exists and is not an empty folder.
    OSError
        When the disk is full or read-only or the path cannot be written; says which, and that nothing was changed.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "numbers.txt"
    ...     with atomic_write(path, "the numbers") as aside:
    ...         _ = aside.write_text("1 2 3")
    ...         before = path.exists()
    ...     before, path.read_text()
    (False, '1 2 3')
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    if folder and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} already exists and is not an empty folder.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not shared:
            remove_partial(path)
        if folder:
            aside.mkdir()
        yield aside
        sync_tree(aside)
        os.replace(aside, path)
        sync(path.parent)
    except OSError as error:
        clear = write_error(error, path, what)
        raise clear from (None if clear is error else error)
    finally:
        remove(aside)


def remove_partial(path: Path) -> None:
    """Remove what killed processes have written beside a path, to be renamed to it in the end."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        remove(stale)


@contextmanager
def locked(path: str | os.PathLike) -> Iterator[None]:
    """Hold a file that one process at a time can hold; wait until it is free.

    A process that ends lets go of it, however it ends. Where the system or the file system has no such locks, nothing
    is waited for.

    Parameters
    ----------
    path
        The file; it is made where it is missing. Its folder must exist.
    """
    with open(path, "a") as file:
        if fcntl is not None:
            with suppress(OSError):  # file systems without locks: what is done under one bears being done twice
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def require_space(folder: str | os.PathLike, n_bytes: int, what: str) -> None:
    """Raise unless a file of that size can be written; for libraries that cannot survive a disk that fills up.

    HDF5 ends the process when a write fails: ask before :meth:`anndata.AnnData.write_h5ad`, with
    :func:`h5ad_size`.

    Parameters
    ----------
    folder
        Existing folder, or one whose parent exists.
    n_bytes
        Size in bytes.
    what
        What is going to be written, for the message.

    Raises
    ------
    OSError
        When there is less space, or the folder cannot be written to.
    """
    folder = Path(folder)
    probe = folder / f".{uuid.uuid4().hex}.partial"
    try:
        free = shutil.disk_usage(folder).free
        if free < n_bytes:
            raise OSError(errno.ENOSPC, f"{n_bytes / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free")
        descriptor = os.open(probe, os.O_CREAT | os.O_WRONLY)
        try:
            if n_bytes <= _LARGEST_PROBE and hasattr(os, "posix_fallocate"):  # finds quotas and limits too
                os.posix_fallocate(descriptor, 0, max(1, n_bytes))
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise write_error(error, folder, what) from error
    finally:
        remove(probe)


def h5ad_size(adata: AnnData) -> int:
    """Upper bound of the size in bytes of an AnnData written without compression."""
    return int(1.1 * adata.__sizeof__()) + 2_000_000


def write_error(error: OSError, path: str | os.PathLike, what: str) -> OSError:
    """The same error with a message that says what could not be written, where, why, and what to do."""
    if getattr(error, "is_clear", False):  # from a write inside this one
        return error
    reason = error.strerror or str(error)
    if error.errno is not None:
        reason = _REASONS.get(error.errno, reason)
    if error.errno in _REASONS and error.strerror not in (None, os.strerror(error.errno)):
        reason += f" ({error.strerror})"
    message = f"Could not write {what} to {os.fspath(path)!r}: {reason}. What was there before is unchanged."
    clear = type(error)(error.errno, message) if error.errno is not None else OSError(message)
    vars(clear)["is_clear"] = True
    return clear


def file_checksum(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_tree(path: Path) -> None:
    """Have the operating system write a file, or a folder with all it holds, to the disk."""
    if path.is_dir():
        for child in path.rglob("*"):
            sync(child)
    sync(path)


def sync(path: Path) -> None:
    """Have the operating system write a file or a folder's entries to the disk."""
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove what was written aside, if it is still there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):  # the error that brought us here is the one to report
        path.unlink(missing_ok=True)
