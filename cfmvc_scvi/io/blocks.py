"""Results in numbered blocks: each is there whole or not at all, whichever process writes it, until all are there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from cfmvc_scvi.io.files import atomic_write, locked, remove

#: Arrays of some rows of a block, by name.
Piece = Mapping[str, np.ndarray]
_NOTE, _LOCK, _ENDING = "request.json", "lock", ".block"


class OtherRequestError(ValueError):
    """Blocks that are there belong to something else than what is asked for."""


class BlockFolder:
    """Folder of numbered blocks, with a note of what they belong to. Several processes may write into it.

    Parameters
    ----------
    path
        The folder.
    n_blocks
        Blocks that the whole consists of.
    """

    def __init__(self, path: Path, n_blocks: int) -> None:
        self.path, self.n_blocks = path, n_blocks

    @classmethod
    def open(cls, path: Path, n_blocks: int, identity: Mapping[str, str]) -> BlockFolder:
        """The folder of this request: a new one, or what earlier and other processes have made of it.

        Parameters
        ----------
        path
            The folder. Its parent must exist.
        n_blocks
            Blocks that the whole consists of.
        identity
            What the blocks depend on, as short texts by name.

        Raises
        ------
        OtherRequestError
            When the folder belongs to another request; the message says what differs.
        OSError
            When the folder cannot be written to, or its note cannot be read.
        """
        path.mkdir(exist_ok=True)
        note = path / _NOTE
        with locked(path / _LOCK):
            if not note.exists():
                with atomic_write(note, "the note of the request", shared=True) as aside:
                    aside.write_text(json.dumps(dict(identity), indent=1))
        try:
            found = json.loads(note.read_text())
        except ValueError as error:
            raise OSError(f"{os.fspath(note)!r} is damaged: remove its folder and start anew.") from error
        refuse_other(found, identity, path)
        return cls(path, n_blocks)

    def missing(self) -> list[int]:
        """Numbers of the blocks that are not there."""
        there = {name for name in os.listdir(self.path) if name.endswith(_ENDING)} if self.path.is_dir() else set()
        return [number for number in range(self.n_blocks) if self._file(number).name not in there]

    def write(self, number: int, pieces: Iterable[Piece], what: str) -> None:
        """Write a block, one piece at a time; it is there when its last piece is.

        Parameters
        ----------
        number
            Which block.
        pieces
            Arrays of the rows in order, with the same names in every piece.
        what
            What is being written, for the message of an error.
        """
        with atomic_write(self._file(number), what, shared=True) as aside, open(aside, "wb") as file:
            names: list[str] | None = None
            for piece in pieces:
                if names is None:
                    names = list(piece)
                    np.save(file, np.array(names))
                for name in names:
                    np.save(file, piece[name])

    def read(self, number: int) -> Iterator[dict[str, np.ndarray]]:
        """Pieces of a block, in order.

        Raises
        ------
        OSError
            When the block is damaged; the message names its file.
        """
        path = self._file(number)
        size = path.stat().st_size
        with open(path, "rb") as file:
            try:
                names = np.load(file).tolist()
                while file.tell() < size:
                    yield {name: np.load(file) for name in names}
            except (ValueError, EOFError) as error:
                raise OSError(
                    f"{os.fspath(path)!r} is damaged ({error}): remove this file and make the call again."
                ) from error

    def alone(self) -> AbstractContextManager[None]:
        """Context in which no other process is that has asked for the same; see :func:`~cfmvc_scvi.io.files.locked`."""
        return locked(self.path / _LOCK)

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        remove(self.path)

    def _file(self, number: int) -> Path:
        return self.path / f"{number:07d}{_ENDING}"


def refuse_other(found: Mapping[str, str], asked: Mapping[str, str], path: Path) -> None:
    """Raise unless what is at a path is of this request.

    Raises
    ------
    OtherRequestError
        Naming every part in which they differ, as it is there and as it was asked for.
    """
    parts = [name for name in dict.fromkeys([*found, *asked]) if found.get(name) != asked.get(name)]
    if parts:
        differ = "; ".join(
            f"{name} is {found.get(name, 'not there')}, asked for is {asked.get(name, 'none')}" for name in parts
        )
        raise OtherRequestError(
            f"What is at {os.fspath(path)!r} belongs to another request: {differ}. Ask for the same to go on with it, "
            "choose another name, or remove it to start anew."
        )
