"""Archives: nested values as one JSON file and one safetensors file, checked when read. Nothing in them is run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cfmvc_scvi.io.codec import from_plain, to_plain
from cfmvc_scvi.io.files import atomic_write, file_checksum

#: Version of the format; raised when a program that knows only the earlier ones would misread a file.
FORMAT_VERSION = 1
_FORMAT = "cfmvc_scvi archive"


class ArchiveError(ValueError):
    """An archive that is damaged, incomplete, or of a version that cannot be read."""


def write_archive(
    folder: str | os.PathLike, name: str, content: dict[str, Any], what: str, attached: Sequence[str] = ()
) -> None:
    """Write ``content`` into ``{name}.json`` and a safetensors file ``{name}-{checksum}.safetensors`` that it names.

    Renaming the JSON file is the one moment in which the new archive takes the place of an earlier one: whenever the
    process is killed, the folder holds the old one or the new one.

    Parameters
    ----------
    folder
        Existing folder.
    name
        Name of the archive in the folder.
    content
        What :func:`~cfmvc_scvi.io.codec.to_plain` takes.
    what
        What is being written, for messages.
    attached
        Names of further files of the folder that belong to the archive; their checksums are kept.

    Raises
    ------
    TypeError
        For a value that cannot be saved; nothing is written.
    OSError
        When the folder cannot be written to; an earlier archive is then as it was.
    """
    folder = Path(folder)
    for stale in folder.glob(f".{name}-*.safetensors.*.partial"):
        stale.unlink(missing_ok=True)  # of a process that was killed
    plain, arrays = to_plain(content, what)
    packed = save(arrays or {"none": np.zeros(0)})
    checksum = hashlib.sha256(packed).hexdigest()
    weights = f"{name}-{checksum[:16]}.safetensors"
    with atomic_write(folder / weights, what) as aside:
        aside.write_bytes(packed)
    head = {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        "written_by": {package: version(package) for package in ("cfmvc_scvi", "scvi-tools", "torch", "numpy")},
        "weights": weights,
        "files": {weights: checksum} | {other: file_checksum(folder / other) for other in attached},
        "content": plain,
    }
    with atomic_write(folder / f"{name}.json", what) as aside:
        aside.write_text(json.dumps(head | {"checksum": _checksum(head)}, indent=1), encoding="utf-8")
    for old in set(_weight_files(folder, name)) - {weights}:
        (folder / old).unlink(missing_ok=True)


def read_archive(folder: str | os.PathLike, name: str) -> dict[str, Any]:
    """Content of an archive; attached files are not looked at, see :func:`check_file`.

    Raises
    ------
    FileNotFoundError
        When there is no archive of this name.
    ArchiveError
        When a file is missing, damaged or changed, or was written in a format this version does not know.
    """
    folder = Path(folder)
    head = read_head(folder, name)
    check_file(folder, name, head, head["weights"])
    arrays = _read_arrays(folder / head["weights"])
    try:
        return from_plain(head["content"], arrays)
    except ValueError as error:
        raise ArchiveError(f"{folder / name}.json is damaged: {error}") from error


def check_attribute_names(names: Iterable[str]) -> None:
    """Raise unless these are names of attributes that are saved: public, with an underscore at the end."""
    for name in names:
        if not name.isidentifier() or not name.endswith("_") or name.startswith("_"):
            raise ArchiveError(f"The file holds the attribute {name!r}, which no model has: it is damaged. {_ADVICE}")


def archive_exists(folder: str | os.PathLike, name: str) -> bool:
    """Whether the folder holds an archive of this name."""
    return (Path(folder) / f"{name}.json").is_file()


def read_head(folder: Path, name: str) -> dict[str, Any]:
    """The JSON file of an archive, with its own checksum and version verified."""
    path = folder / f"{name}.json"
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArchiveError(
            f"{path} is not complete JSON ({error}): the file is truncated or damaged. {_ADVICE}"
        ) from error
    if not isinstance(head, dict) or head.get("format") != _FORMAT:
        raise ArchiveError(f"{path} is not a file that cfmvc_scvi has written: its `format` is not {_FORMAT!r}.")
    _check_version(path, head)
    stated = head.pop("checksum", None)
    if stated != _checksum(head):
        raise ArchiveError(
            f"{path} does not match its own checksum: it was changed after it was written, or damaged. {_ADVICE}"
        )
    return head


def check_file(folder: Path, name: str, head: dict[str, Any], file: str) -> None:
    """Raise unless a file that the archive names is there and as it was written."""
    path = folder / file
    if Path(file).name != file:
        raise ArchiveError(f"{folder / name}.json names the file {file!r}, which is not in its own folder.")
    if not path.is_file():
        raise ArchiveError(f"{file!r}, which {name}.json needs, is not in {os.fspath(folder)!r}. {_ADVICE}")
    if file_checksum(path) != head["files"][file]:
        raise ArchiveError(
            f"{path} does not match the checksum in {name}.json: it is truncated, or was changed after it was "
            f"written. {_ADVICE}"
        )


_ADVICE = "Copy the whole folder again from where it was saved, or save the model again."


def _check_version(path: Path, head: dict[str, Any]) -> None:
    found = head.get("format_version")
    if not isinstance(found, int) or found < 1:
        raise ArchiveError(f"{path} has no valid `format_version` ({found!r}): the file is damaged. {_ADVICE}")
    if found > FORMAT_VERSION:
        writer = head.get("written_by", {}).get("cfmvc_scvi", "a later version")
        raise ArchiveError(
            f"{path} was written by cfmvc_scvi {writer} in format {found}; this is cfmvc_scvi {version('cfmvc_scvi')}, "
            f"which reads formats up to {FORMAT_VERSION}: install a later version of cfmvc_scvi."
        )


def _checksum(head: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(head, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return load(path.read_bytes())
    except (SafetensorError, KeyError) as error:
        raise ArchiveError(f"{path} is not a safetensors file that can be read: {error}. {_ADVICE}") from error


def _weight_files(folder: Path, name: str) -> list[str]:
    start, end = f"{name}-", ".safetensors"
    files = (path.name for path in folder.glob(f"*{end}"))
    return [file for file in files if file.startswith(start) and len(file) == len(start) + 16 + len(end)]
