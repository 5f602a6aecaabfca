"""The matrix of counts: read once, and refused where it is not counts."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scvi import settings

from cfmvc_scvi._rows import DiskRows, row_sums

#: Entries looked at together; bounds the memory of the checks.
_BLOCK = 2**24
#: Cells on disk that are looked at together.
_DISK_ROWS = 4096
#: Matrices on disk whose summary is remembered, so that they are not read again for it.
_REMEMBERED = 4
#: Counts beyond which float32, in which the networks compute, skips whole numbers.
_LARGEST_COUNT = 2**24


@dataclass(frozen=True)
class CountSummary:
    """What one pass over the counts finds.

    Attributes
    ----------
    rows, columns
        Sums of every cell and of every gene, float64, shapes (n_cells,) and (n_genes,).
    largest
        Largest entry.
    n_fractional
        Entries that are not whole numbers.
    """

    rows: np.ndarray
    columns: np.ndarray
    largest: float
    n_fractional: int


#: Summaries of matrices on disk, the last one used at the end. Later reads are compared with their row sums.
_KNOWN: OrderedDict[tuple, CountSummary] = OrderedDict()


def check_counts(
    matrix: Any, where: str, *, allow_noncounts: bool = False, warn: bool = True, is_new: bool = True
) -> CountSummary:
    """Raise unless every entry is a finite, non-negative whole number; one pass over the data.

    Parameters
    ----------
    matrix
        CSR, CSC, dense, or rows on disk, shape (n_cells, n_genes).
    where
        Its name, for messages.
    allow_noncounts
        Let fractional values pass, with a warning (unless ``warn`` is off).
    is_new
        Whether the data are to be registered, or read by a model that is there already. Data on disk that were read
        before are then not read again.

    Raises
    ------
    TypeError
        For containers that scvi-tools cannot read and number types that cannot hold counts, naming the conversion.
    ValueError
        For missing, infinite, negative or fractional values, and counts too large for float32.
    """
    _check_container(matrix, where)
    if 0 in matrix.shape:
        raise ValueError(f"{where} is empty: its shape is {matrix.shape}.")
    found = (
        _summary_on_disk(matrix, where, afresh=is_new) if isinstance(matrix, DiskRows) else _summarise(matrix, where)
    )
    if found.largest > _LARGEST_COUNT:
        raise ValueError(
            f"{where} has counts up to {found.largest:.0f}; single precision holds whole numbers up to "
            f"{_LARGEST_COUNT} only. Check that these are counts of molecules or reads per cell."
        )
    if found.largest == 0:
        raise ValueError(f"{where} is empty: all its values are zero.")
    if found.n_fractional and not allow_noncounts:
        all_the_same = (
            "To use these values all the same, pass `allow_noncounts=True` to `setup_anndata`; the likelihood is then "
            "not that of the data."
            if is_new
            else "The model was trained on counts."
        )
        raise ValueError(
            f"{where} has {found.n_fractional} fractional values{_first_fractional(matrix)}: it looks {_guess(found)}. "
            "CFMVC needs raw counts: "
            f"where they are in a layer, pass `layer=` to `setup_anndata`. {all_the_same}"
        )
    if found.n_fractional and warn:
        warnings.warn(
            f"{where} has {found.n_fractional} fractional values and looks {_guess(found)}. `allow_noncounts=True` "
            "lets them pass: the negative binomial is not the distribution of such data, library sizes are not counts, "
            "and predictions are on the scale of these values.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
    return found


def _check_container(matrix: Any, where: str) -> None:
    kind = type(matrix).__name__
    if isinstance(matrix, sparse.sparray):
        raise TypeError(
            f"{where} is a scipy sparse array ({kind}), which scvi-tools cannot read: "
            "convert it with `scipy.sparse.csr_matrix(...)`."
        )
    if isinstance(matrix, np.ma.MaskedArray):
        raise TypeError(f"{where} is a masked array: fill it with counts or leave the masked cells out.")
    if sparse.issparse(matrix) and matrix.format not in ("csr", "csc"):
        raise TypeError(f"{where} is a {kind}: convert it with `scipy.sparse.csr_matrix(...)`.")
    if not (sparse.issparse(matrix) or isinstance(matrix, (np.ndarray, DiskRows))):
        raise TypeError(
            f"{where} is a {type(matrix).__module__}.{kind}, which is neither in memory nor a dataset on disk that can "
            "be read by rows: load the data first, `adata = adata.to_memory()`, or open the file with "
            "`cfmvc_scvi.data.open_counts(path)`, which leaves the counts on disk."
        )
    if matrix.dtype.kind not in "iuf":
        raise TypeError(
            f"{where} has values of type {matrix.dtype}, which are not counts: use an integer or float type."
        )
    if matrix.dtype == np.float16:
        raise TypeError(
            f"{where} is float16, which holds whole numbers up to 2048 only: store the counts as float32, e.g. "
            "`adata.X = adata.X.astype('float32')`, from where they were not yet rounded."
        )


def find_noncount(block: sparse.csr_matrix) -> tuple[int, int, float, str] | None:
    """An entry of a CSR block that is no count, as row, column, value and what is wrong; ``None`` without one."""
    values = block.data
    log = "log-transformed" if values.size and values.max() < 30 else "normalised"
    for wrong, why in (
        (~np.isfinite(values), "missing or infinite"),
        (values < 0, "negative, as after scaling"),
        (values != np.floor(values), f"no whole number: the values look {log}"),
        (values > _LARGEST_COUNT, f"above {_LARGEST_COUNT}, beyond which single precision skips whole numbers"),
    ):
        if wrong.any():
            at = int(np.argmax(wrong))
            return int(np.searchsorted(block.indptr, at, side="right")) - 1, int(block.indices[at]), values[at], why
    return None


def cell_totals(matrix: Any) -> np.ndarray:
    """Sum of the counts of every cell, shape (n_cells,), float64; of rows on disk as they were when last checked."""
    if isinstance(matrix, DiskRows):
        return _summary_on_disk(matrix, matrix.where, afresh=False).rows
    return np.asarray(matrix.sum(axis=1)).ravel().astype(np.float64)


def _summary_on_disk(matrix: DiskRows, where: str, *, afresh: bool) -> CountSummary:
    """Summary of rows on disk; that of the whole matrix is remembered."""
    known = None if afresh else _KNOWN.get(matrix.key)
    if known is None:
        known = _summarise(matrix, where)
        if matrix.rows is not None:
            return known
        _KNOWN[matrix.key] = known
    _KNOWN.move_to_end(matrix.key)
    while len(_KNOWN) > _REMEMBERED:
        _KNOWN.popitem(last=False)
    if matrix.rows is None:
        return known
    return CountSummary(known.rows[matrix.rows], known.columns, known.largest, known.n_fractional)


def _summarise(matrix: Any, where: str) -> CountSummary:
    if sparse.issparse(matrix) and matrix.format == "csc":
        found = _summarise(matrix.T, where)
        return CountSummary(found.columns, found.rows, found.largest, found.n_fractional)
    rows, columns = np.zeros(matrix.shape[0]), np.zeros(matrix.shape[1])
    largest, n_fractional = 0.0, 0
    for block in _blocks(matrix):
        part: Any = matrix[block]
        values = part.data if sparse.issparse(part) else part
        if values.size:
            try:
                _check_range(values, where)
            except ValueError:
                if not isinstance(matrix, DiskRows):
                    raise
                _check_range(values, where + _place(matrix, block.start, part))  # says in which file
            largest = max(largest, float(values.max()))
            if values.dtype.kind == "f":
                n_fractional += int(np.count_nonzero(values != np.floor(values)))
        rows[block] = row_sums(part)
        columns += np.asarray(part.sum(axis=0, dtype=np.float64)).ravel()
    return CountSummary(rows, columns, largest, n_fractional)


def _first_fractional(matrix: Any) -> str:
    """Where the first fractional value of cells on disk is, which may be in several files."""
    places = (_place(matrix, r.start, b) for r, b in matrix.blocks()) if isinstance(matrix, DiskRows) else ()
    return next(filter(None, places), "")


def _place(matrix: DiskRows, start: int, block: sparse.csr_matrix) -> str:
    """Where the first value of a block is that is no count; nothing without one."""
    bad = find_noncount(block)
    return "" if bad is None else f" (row {start + bad[0]}, in {matrix.path_of(start + bad[0])!r})"


def _blocks(matrix: Any) -> Iterator[slice]:
    if isinstance(matrix, DiskRows):
        size = _DISK_ROWS
    else:
        per_row = matrix.shape[1] if not sparse.issparse(matrix) else max(1, matrix.nnz // matrix.shape[0])
        size = max(1, _BLOCK // per_row)
    for start in range(0, matrix.shape[0], size):
        yield slice(start, start + size)


def _check_range(values: np.ndarray, where: str) -> None:
    smallest = values.min()
    if not np.isfinite(smallest) or not np.isfinite(values.max()):
        n_bad = int(np.count_nonzero(~np.isfinite(values)))
        raise ValueError(
            f"{where} has values that are missing or infinite ({n_bad} in the first block that has any); counts are "
            "needed: leave those cells or genes out, or set what was not seen to 0."
        )
    if smallest < 0:
        raise ValueError(
            f"{where} has negative values (smallest {smallest:g}): it looks scaled or batch-corrected; raw counts are "
            "needed. Where they are in a layer, pass `layer=`."
        )


def _guess(found: CountSummary) -> str:
    if found.largest < 30:
        return f"log-transformed (largest value {found.largest:.3g})"
    rows = found.rows[found.rows > 0]
    if len(rows) > 1 and rows.std() < 1e-3 * rows.mean():
        return f"normalised (every cell sums to {rows.mean():.6g})"
    return "normalised or log-transformed"
