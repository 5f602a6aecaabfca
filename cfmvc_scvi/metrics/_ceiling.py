"""What the data themselves allow: the ceiling against which a score is read."""

from __future__ import annotations

import numpy as np

from cfmvc_scvi.metrics._arrays import Matrix, check_array


def split_half(truth: Matrix, seed: int = 0) -> tuple[Matrix, Matrix]:
    """Split cells at random into two halves: the split-half ceiling scores one as a prediction of the other.

    Half the cells predict half the cells, so it is a cautious ceiling: a perfect model, scored against all
    cells, can pass it where sampling noise matters (correlations, MSE).

    Parameters
    ----------
    truth
        Cells x genes, at least 4 cells.
    seed
        Seed of the split.

    Returns
    -------
    Two disjoint matrices that together hold every cell once; the second has the odd cell.

    Examples
    --------
    >>> import numpy as np
    >>> first, second = split_half(np.arange(10).reshape(5, 2), seed=0)
    >>> first.shape, second.shape
    ((2, 2), (3, 2))
    """
    truth = check_array(truth, "truth", min_cells=4)
    order = np.random.default_rng(seed).permutation(truth.shape[0])
    half = truth.shape[0] // 2
    return truth[order[:half]], truth[order[half:]]
