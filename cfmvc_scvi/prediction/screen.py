"""A prediction in blocks on disk: resumed after a kill, shared among processes, brought together at the end."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import anndata as ad
import h5py
import numpy as np
import zarr
from anndata import AnnData
from scipy import sparse
from scvi.utils import track

from cfmvc_scvi.data.on_disk import open_counts
from cfmvc_scvi.io.blocks import BlockFolder, Piece, refuse_other
from cfmvc_scvi.io.files import require_space
from cfmvc_scvi.prediction.output import Output, check_path

logger = logging.getLogger("scvi.cfmvc")

Block = TypeVar("Block")
#: Rows of a result: ``X``, the latent and the layers with values of their own, as :meth:`Output.append` takes them.
Rows = tuple[Any, np.ndarray | None, Mapping[str, np.ndarray]]

#: Place in ``uns`` of what a finished screen was made of.
_IDENTITY = "cfmvc/identity"


@dataclass(frozen=True)
class Screen(Generic[Block]):
    """A prediction that can be made block by block, in any order.

    Attributes
    ----------
    blocks
        What every block is predicted from.
    predict
        Rows of a block, some at a time; they depend on the block alone.
    make_output
        Output of the whole, for a path or for memory, with room for the identity in ``uns``.
    identity
        What the rows depend on, as short texts by name.
    shape
        Rows and columns of the whole.
    n_bytes
        About the size of the whole.
    """

    blocks: Sequence[Block]
    predict: Callable[[Block], Iterable[Rows]]
    make_output: Callable[[Path | None], Output]
    identity: Mapping[str, str]
    shape: tuple[int, int]
    n_bytes: int

    def run(
        self, out: str | os.PathLike | None, shard: tuple[int, int] | None, show_progress: bool | None
    ) -> AnnData | None:
        """Predict the blocks that are missing, and bring all together where all are there.

        Parameters
        ----------
        out
            Path of the whole, ending in ``.h5ad`` or ``.zarr``; ``None`` keeps it in memory.
        shard
            Which of how many parts to predict, counted from 0; ``None`` is all.
        show_progress
            Show a bar over blocks; ``None`` does where there are several.

        Returns
        -------
        The whole; ``None`` where blocks of other shards are missing.

        Raises
        ------
        OtherRequestError
            When what is there belongs to another request.
        FileExistsError
            When there is something else at ``out``.
        OSError
            When the disk has no space, or a block is damaged.
        """
        hidden = len(self.blocks) == 1 if show_progress is None else not show_progress
        which, n_shards = checked_shard(shard)
        if out is None:
            if shard is not None:
                raise ValueError("`shard` is for parts of one file: give its path, `out=`, to all of them.")
            return self._in_memory(hidden)
        path = check_path(out)
        if path.exists():
            return self._finished(path)
        folder = path.with_name(f"{path.name}.parts")
        n_missing = len(BlockFolder(folder, len(self.blocks)).missing())
        logger.info(
            "%d rows x %d columns in %d blocks, of which %d are there already: about %.2f GB in %s, and as much beside "
            "it until it is complete.",
            *(*self.shape, len(self.blocks), len(self.blocks) - n_missing, self.n_bytes / 1e9, path),
        )
        require_space(path.parent, int(self.n_bytes * (1 + n_missing / len(self.blocks))), "the screen")
        parts = BlockFolder.open(folder, len(self.blocks), self.identity)
        mine = [number for number in parts.missing() if number % n_shards == which]
        for number in track(mine, description="Predicting conditions", disable=hidden):
            parts.write(number, map(_to_piece, self.predict(self.blocks[number])), "a block of the screen")
        missing = parts.missing()
        if path.exists():  # asked after what is missing: another process removes the blocks when the whole is there
            parts.remove()
            return self._finished(path)
        if missing:
            logger.info("%d of %d blocks of %s are left to other shards.", len(missing), len(self.blocks), path)
            return None
        return self._bring_together(path, parts, hidden)

    def _in_memory(self, hidden: bool) -> AnnData:
        output = self.make_output(None)
        for block in track(self.blocks, description="Predicting conditions", disable=hidden):
            for rows in self.predict(block):
                output.append(*rows)
        return output.finish()

    def _bring_together(self, path: Path, parts: BlockFolder, hidden: bool) -> AnnData:
        """Write the whole from its blocks, a piece at a time; one process does, the others wait."""
        try:
            with parts.alone():
                if not path.exists():
                    self._write(path, parts, hidden)
        except FileNotFoundError:  # another process was faster, and has removed the blocks
            if not path.exists():
                raise
        parts.remove()
        return self._finished(path)

    def _write(self, path: Path, parts: BlockFolder, hidden: bool) -> None:
        output = self.make_output(path)
        try:
            for number in track(range(len(self.blocks)), description="Writing the screen", disable=hidden):
                for piece in parts.read(number):
                    output.append(*_from_piece(piece, self.shape[1]))
            whole = output.finish()
        except BaseException:
            output.abandon()
            raise
        if whole.isbacked:
            whole.file.close()

    def _finished(self, path: Path) -> AnnData:
        """The whole, its values left on disk, where it is of this request."""
        found = _identity_of(path)
        if found is None:
            raise FileExistsError(
                f"There is something at `out`, {os.fspath(path)!r}, that is no screen: remove it or choose another "
                "name."
            )
        refuse_other(found, self.identity, path)
        return open_counts(path)


def checked_shard(shard: Any) -> tuple[int, int]:
    """Number of a part, and of all parts; ``None`` is the only one.

    Raises
    ------
    ValueError
        For anything but two whole numbers of which the first is smaller, and not negative.
    """
    if shard is None:
        return 0, 1
    is_pair = isinstance(shard, (tuple, list)) and len(shard) == 2
    if not is_pair or not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in shard):
        raise ValueError(f"`shard` is {shard!r}; it must be two whole numbers, (number of this part, parts): (0, 4).")
    which, n = map(int, shard)
    if not 0 <= which < n:
        raise ValueError(f"`shard` is {shard!r}; of {n} parts the numbers are 0 to {n - 1}.")
    return which, n


def _to_piece(rows: Rows) -> Piece:
    """Rows as arrays by name."""
    x, latent, layers = rows
    if sparse.issparse(x):
        piece = {"data": x.data, "indices": x.indices, "indptr": x.indptr}
    else:
        piece = {"x": np.asarray(x)}
    piece |= {} if latent is None else {"latent": latent}
    return piece | {f"layers/{name}": values for name, values in layers.items()}


def _from_piece(piece: Piece, n_columns: int) -> Rows:
    """Counterpart of :func:`_to_piece`."""
    if "data" in piece:
        shape = (len(piece["indptr"]) - 1, n_columns)
        x: Any = sparse.csr_matrix((piece["data"], piece["indices"], piece["indptr"]), shape=shape)
    else:
        x = piece["x"]
    layers = {name.partition("/")[2]: values for name, values in piece.items() if name.startswith("layers/")}
    return x, piece.get("latent"), layers


def _identity_of(path: Path) -> dict[str, str] | None:
    """What a finished screen was made of; ``None`` where there is something else."""
    place = f"uns/{_IDENTITY}"
    try:
        if path.is_dir():
            group: Any = zarr.open_group(path, mode="r")
            return _texts(group, place)
        with h5py.File(path, "r") as file:
            return _texts(file, place)
    except (OSError, ValueError, KeyError):  # not a file of HDF5, or no zarr
        return None


def _texts(group: Any, place: str) -> dict[str, str] | None:
    found: Any = ad.io.read_elem(group[place]) if place in group else {}
    return {name: str(text) for name, text in found.items()} or None


def in_chunks(items: Sequence[Block], size: int) -> Iterator[Sequence[Block]]:
    """Consecutive items, so many at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
