"""What a likelihood of counts must be able to do, and how others are added."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Final

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from torch import Tensor, nn
from torch.distributions import Distribution

from cfmvc_scvi._messages import unknown_choice
from cfmvc_scvi._types import CountBatch, at_least_float32


class Likelihood(nn.Module, ABC):
    """Distribution of the counts of every gene around their means; holds the parameters beside the mean.

    A likelihood is one file with one subclass and one name in :data:`LIKELIHOODS`. Training needs :meth:`log_prob`
    alone; :meth:`reconstruction_loss` may be replaced by a faster function of the same value. Counts and means are
    arrays of shape (n, n_genes).

    Parameters
    ----------
    n_genes
        Genes.

    Attributes
    ----------
    dispersions
        What the spread may depend on, as in scvi-tools: ``"gene"``, and ``"gene-batch"`` for one that takes the number
        of batches as its second argument.
    """

    dispersions: ClassVar[tuple[str, ...]] = ("gene",)

    def __init__(self, n_genes: int) -> None:
        super().__init__()
        self.n_genes = n_genes

    def in_batches(self, batch: Int[Tensor, " n"]) -> Likelihood:
        """The likelihood of cells in these batches, codes of shape (n,); the default is the same in all."""
        return self

    # ---- start values, in numpy ---------------------------------------------------------------------------------

    def start_from(self, counts: np.ndarray, library: np.ndarray, stratum: np.ndarray, batch: np.ndarray) -> None:
        """Set start values of the parameters, from training cells; the default leaves them as they are.

        Parameters
        ----------
        counts
            Counts, shape (n, n_genes).
        library, stratum, batch
            Library sizes, codes of strata of cells with like means, and of batches, shape (n,).
        """

    def leave_to_latent(self, explained: np.ndarray) -> None:
        """Take off the spread what the latent explains; the default leaves it as it was learned.

        Parameters
        ----------
        explained
            Part of the overdispersion around the means of populations that the latent explains in cells outside
            training, shape (n_genes,).
        """

    def back_to_training(self) -> None:
        """Parameters as training left them, before :meth:`leave_to_latent`."""

    @property
    def overdispersion(self) -> np.ndarray | None:
        """(variance - mean) / mean² of counts around the means of populations, (n_genes,); ``None`` if not known."""
        return None

    # ---- training, in torch -----------------------------------------------------------------------------------

    @abstractmethod
    def log_prob(
        self, x: Real[Tensor, "n n_genes"], log_mean: Float[Tensor, "*draws n n_genes"]
    ) -> Float[Tensor, "*draws n n_genes"]:
        """Log-probability of the counts ``x`` given the log of their means, in at least float32; (n, n_genes)."""

    @abstractmethod
    def distribution(self, mean: Tensor, share: Tensor) -> Distribution:
        """The distribution as scvi-tools' own methods read it; ``share`` is the mean over the library size."""

    def distribution_of_cells(self, mean: Tensor, share: Tensor) -> Distribution:
        """The same beside the decoded means of cells one by one, which hold more than the latent explains of others."""
        return self.distribution(mean, share)

    def reconstruction_loss(self, features: Tensor, output: nn.Linear, batch: CountBatch, *, panel: bool) -> Tensor:
        """Mean negative log-likelihood of cells, a scalar.

        Parameters
        ----------
        features
            Input of the decoder's last layer, shape (n, n_features).
        output
            That layer, whose outputs are the logits of the genes' shares.
        batch
            Counts and library sizes.
        panel
            Whether one more share, of logit 0, stands for the genes outside the data.
        """
        logits = at_least_float32(output(features))
        total = torch.logsumexp(logits, dim=-1, keepdim=True)
        total = nn.functional.softplus(total) if panel else total
        log_mean = logits - total + batch.library.log().unsqueeze(-1)
        return -self.log_prob(batch.counts.dense(), log_mean).sum(dim=-1).mean()

    # ---- prediction, in numpy ---------------------------------------------------------------------------------

    @abstractmethod
    def expected_lognorm(
        self, mean: Float[np.ndarray, "n n_genes"], library: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n n_genes"]:
        r"""Mean of log1p of counts per 10,000, :math:`E[\log(1 + 10^4 x / L)]`, of counts with these means.

        Parameters
        ----------
        mean
            Means, shape (n, n_genes).
        library
            Library size :math:`L` of every row, shape (n,).
        """

    @abstractmethod
    def draw(self, mean: Float[np.ndarray, "n n_genes"], rng: np.random.Generator) -> Int[np.ndarray, "n n_genes"]:
        """Counts with these means, whole numbers of shape (n, n_genes)."""

    @abstractmethod
    def draw_counterfactual(
        self,
        x: Real[np.ndarray, " n_genes"],
        mean0: Float[np.ndarray, " n_genes"],
        log_ratio: Float[np.ndarray, " n_genes"],
        rng: np.random.Generator,
    ) -> Int[np.ndarray, " n_genes"]:
        """Counts of one cell, had its means been multiplied.

        Parameters
        ----------
        x
            Observed counts, shape (n_genes,).
        mean0
            Means they were drawn with, shape (n_genes,).
        log_ratio
            Log of the factor on the means, shape (n_genes,); 0 returns the observed count.
        rng
            Random generator of the cell.
        """


#: Name to class; the names are those of scvi-tools' ``gene_likelihood``.
LIKELIHOODS: Final[dict[str, type[Likelihood]]] = {}


def register_likelihood(name: str, likelihood: type[Likelihood]) -> None:
    """Make a likelihood known by a name, for ``CFMVC(adata, gene_likelihood=name)``."""
    LIKELIHOODS[name] = likelihood


def get_likelihood(name: str, n_genes: int, dispersion: str = "gene", n_batch: int = 1) -> Likelihood:
    """Likelihood of that name, with parameters per gene or per gene and batch.

    Raises
    ------
    ValueError
        For an unknown name, or a dispersion that this likelihood has not; lists what is known.
    """
    if name not in LIKELIHOODS:
        raise ValueError(unknown_choice("gene_likelihood", name, sorted(LIKELIHOODS)))
    likelihood = LIKELIHOODS[name]
    if dispersion not in likelihood.dispersions:
        raise ValueError(unknown_choice("dispersion", dispersion, likelihood.dispersions))
    return likelihood(n_genes) if dispersion == "gene" else likelihood(n_genes, n_batch)  # pyright: ignore[reportCallIssue]
