"""Populations that tell of each other: independent blocks of a process, and samples of whole blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def blocks_by_size(component: np.ndarray) -> list[np.ndarray]:
    """Rows of every component, those of one size together.

    Parameters
    ----------
    component
        Component of every population, shape (n,).

    Returns
    -------
    Arrays (n_blocks, size) of rows, by size.
    """
    order = np.argsort(component, kind="stable")
    _, start, sizes = np.unique(component[order], return_index=True, return_counts=True)
    return [order[start[sizes == size][:, None] + np.arange(size)] for size in np.unique(sizes)]


def sample_components(component: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Rows of up to ``most`` populations, drawn at random together with all that they share a component with.

    Of components of more than ``most`` populations, the drawn populations alone are taken.

    Parameters
    ----------
    component
        Component of every population, shape (n,).
    most
        Populations to take; where there are no more, all are taken in their order.
    seed
        Of the draw.
    """
    if len(component) <= most:
        return np.arange(len(component))
    order = np.argsort(component, kind="stable")
    _, start, sizes = np.unique(component[order], return_index=True, return_counts=True)
    number = np.unique(component, return_inverse=True)[1].ravel()
    taken = np.zeros(len(component), dtype=bool)
    room = most
    for row in np.random.default_rng(seed).permutation(len(component)):
        if room == 0:
            break
        size = sizes[number[row]]
        whole = order[start[number[row]] : start[number[row]] + size] if size <= most else np.array([row])
        if not taken[row] and len(whole) <= room:
            taken[whole] = True
            room -= len(whole)
    return np.flatnonzero(taken)


def gene_slices(n_genes: int, each: int, most: int) -> list[slice]:
    """Some genes at a time, of which every one takes ``each`` numbers, for about ``most`` numbers; one at least."""
    size = max(1, most // max(each, 1))
    return [slice(start, min(start + size, n_genes)) for start in range(0, n_genes, size)]


def pieces(blocks: np.ndarray, n_genes: int, most: int) -> Iterator[tuple[np.ndarray, list[slice]]]:
    """Some blocks of one size at a time, and the genes in slices, whose covariances are about ``most`` numbers.

    Parameters
    ----------
    blocks
        Rows, shape (n_blocks, size).
    n_genes
        Genes.
    most
        Numbers at a time; one block of one gene is taken in any case.
    """
    each = blocks.shape[1] ** 2
    n_blocks = max(1, most // (each * min(n_genes, 64)))
    for first in range(0, len(blocks), n_blocks):
        some = blocks[first : first + n_blocks]
        yield some, gene_slices(n_genes, each * len(some), most)
