"""The negative binomial: values, gradients, counterfactuals and expectations against independent computations."""

import numpy as np
import pytest
import torch
from scipy import stats
from scvi.distributions import NegativeBinomial as ScviNegativeBinomial

from cfmvc_scvi.likelihood import NegativeBinomial
from cfmvc_scvi.likelihood.negative_binomial import (
    counterfactual_mean,
    draw_counterfactual,
    draw_nb,
    expected_lognorm,
    nb_log_prob,
)

COUNTS = [0.0, 1.0, 2.0, 17.0, 1e3, 1e6]
MEANS = [1e-8, 1e-3, 0.5, 1.0, 30.0, 1e3, 1e6]
THETAS = [1e-3, 0.1, 1.0, 10.0, 1e3, 1e6]


def grid() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every count with every mean and dispersion, float64, flat."""
    parts = torch.meshgrid(*(torch.tensor(v, dtype=torch.float64) for v in (COUNTS, MEANS, THETAS)), indexing="ij")
    x, mean, theta = (part.reshape(-1) for part in parts)
    return x, mean, theta


def exact(x: np.ndarray, mean: np.ndarray, theta: np.ndarray) -> np.ndarray:
    return stats.nbinom.logpmf(x, theta, theta / (theta + mean))


# ---- log-probability ----------------------------------------------------------------------------------------------


def test_log_prob_agrees_with_scipy():
    x, mean, theta = grid()
    ours = nb_log_prob(x, mean.log(), theta).numpy()
    # p = theta / (theta + mu) rounds to 1 for a small mean, so scipy is given what it can represent
    safe = (mean / theta).numpy() > 1e-7
    np.testing.assert_allclose(ours[safe], exact(*(v.numpy() for v in (x, mean, theta)))[safe], rtol=1e-7, atol=1e-7)


def test_log_prob_near_the_poisson_limit():
    """Where scipy's parametrisation rounds: theta of 1e6 and a small mean is a Poisson."""
    x = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    mean = torch.tensor([1e-8, 1e-3, 0.05], dtype=torch.float64)
    ours = nb_log_prob(x[:, None], mean.log().expand(3, 3), torch.tensor(1e9, dtype=torch.float64))
    np.testing.assert_allclose(ours, stats.poisson.logpmf(x[:, None], mean[None]), rtol=1e-6, atol=1e-5)


def test_log_prob_and_gradients_agree_with_scvi():
    """scvi-tools adds 1e-8 inside its logarithms, so means of 1e-8 are left to the other tests."""
    x, mean, theta = grid()
    keep = mean > 1e-6
    values, gradients = [], []
    for ours in (True, False):
        mu, th = mean[keep].clone().requires_grad_(), theta[keep].clone().requires_grad_()
        if ours:
            log_prob = nb_log_prob(x[keep], mu.log(), th)
        else:
            log_prob = ScviNegativeBinomial(mu=mu, theta=th).log_prob(x[keep])
        log_prob.sum().backward()
        values.append(log_prob.detach())
        gradients.append(torch.stack([mu.grad * mean[keep], th.grad * theta[keep]]))  # by the logarithms
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_gradients_agree_with_the_analytic_ones():
    """By log mean: theta (x - mu) / (theta + mu). By theta: differences of digamma."""
    x, mean, theta = grid()
    log_mean, th = mean.log().requires_grad_(), theta.clone().requires_grad_()
    nb_log_prob(x, log_mean, th).sum().backward()
    torch.testing.assert_close(log_mean.grad, theta * (x - mean) / (theta + mean), rtol=1e-9, atol=1e-9)
    by_theta = torch.digamma(x + theta) - torch.digamma(theta) - torch.log1p(mean / theta) + (mean - x) / (theta + mean)
    torch.testing.assert_close(th.grad * theta, by_theta * theta, rtol=1e-6, atol=1e-6)


def test_gradients_are_numerically_right():
    x = torch.tensor([0.0, 3.0, 40.0], dtype=torch.float64)
    log_mean = torch.tensor([-4.0, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([0.2, 2.0, 30.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, t: nb_log_prob(x, m, t), (log_mean, theta))


def test_zero_count_is_exact():
    """theta log(theta / (theta + mu)), to the relative precision of float64 even for a mean of 1e-8."""
    mean, theta = (v.reshape(-1) for v in np.meshgrid(MEANS, THETAS))
    ours = nb_log_prob(torch.zeros(len(mean)).double(), torch.tensor(mean).log(), torch.tensor(theta))
    np.testing.assert_allclose(ours, -theta * np.log1p(mean / theta), rtol=1e-10)


def test_vanishing_mean_stays_finite():
    log_mean = torch.tensor([-1e4, -200.0, -90.0], requires_grad=True)
    log_prob = nb_log_prob(torch.tensor([0.0, 5.0, 1e6]), log_mean, torch.ones(3))
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(log_mean.grad).all()
    assert log_prob[0] == 0.0


@pytest.mark.parametrize("theta", [0.05, 1.0, 50.0])
@pytest.mark.parametrize("mean", [1e-3, 2.0, 40.0])
def test_probabilities_sum_to_one(mean, theta):
    x = torch.arange(60_000, dtype=torch.float64)
    total = nb_log_prob(x, torch.tensor(mean).double().log(), torch.tensor(theta).double()).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_at_least_float32(dtype):
    x = torch.tensor([0.0, 3.0, 100.0])
    out = nb_log_prob(x.to(dtype), torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype))
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out, exact(x.numpy(), 1.0, 1.0), rtol=1e-5)


def test_float32_keeps_its_digits():
    """Against float64 over the grid that the decoder can reach (theta up to e^12), relative to the terms' size."""
    x, mean, theta = (v[grid()[2] < 1.7e5] for v in grid())
    fine = nb_log_prob(x, mean.log(), theta)
    coarse = nb_log_prob(x.float(), mean.log().float(), theta.float()).double()
    size = 1.0 + torch.lgamma(x + theta).abs() + torch.lgamma(theta).abs() + x * (mean.log() - theta.log()).abs()
    assert ((coarse - fine).abs() / size).max() < 1e-6


# ---- counterfactual of an observed cell ---------------------------------------------------------------------------


def test_counterfactual_mean_is_the_identity_without_change():
    rng = np.random.default_rng(0)
    x = rng.poisson(3.0, size=(20, 15)).astype(np.float32)
    x[0, 0] = 1e6
    mean0 = rng.gamma(1.0, 3.0, size=x.shape)
    out = counterfactual_mean(x, mean0, np.zeros_like(mean0), np.full(15, 0.7))
    np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize("log_ratio", [-2.0, -0.3, 0.4, 1.5])
def test_counterfactual_mean_has_the_right_mean_over_cells(log_ratio):
    """Averaged over x ~ NB(mu, theta) it is rho mu; the sum is over the distribution itself."""
    x = np.arange(4000.0)[:, None]
    mean, theta = 6.0, 0.8
    weight = np.exp(exact(x, mean, theta))
    out = counterfactual_mean(x, np.full_like(x, mean), np.full_like(x, log_ratio), np.array([theta]))
    assert (weight * out).sum() == pytest.approx(np.exp(log_ratio) * mean, rel=1e-9)
    assert (out >= 0).all()


@pytest.mark.parametrize("log_ratio", [-3.0, -0.7, 0.7, 2.0])
@pytest.mark.parametrize(("mean", "theta"), [(0.3, 0.5), (4.0, 2.0), (20.0, 0.3)])
def test_drawn_counterfactual_is_negative_binomial(log_ratio, mean, theta):
    """The marginal of x' is NB(rho mu, theta): chi-square over bins of equal expected size, mean and variance."""
    n = 40_000
    rng = np.random.default_rng(7)
    wide = np.full(n, theta)
    x = draw_nb(np.full(n, mean), wide, rng)
    drawn = draw_counterfactual(x, np.full(n, mean), np.full(n, log_ratio), wide, rng)
    target = np.exp(log_ratio) * mean
    law = stats.nbinom(theta, theta / (theta + target))
    assert drawn.dtype == np.int64
    assert drawn.min() >= 0
    assert drawn.mean() == pytest.approx(target, abs=5 * law.std() / np.sqrt(n))
    assert drawn.var() == pytest.approx(law.var(), rel=0.12)
    assert _chi_square_p(drawn, law) > 1e-4


def test_chi_square_sees_a_wrong_dispersion():
    """The test above can fail."""
    rng = np.random.default_rng(7)
    assert _chi_square_p(stats.nbinom(2.0, 0.4).rvs(40_000, random_state=rng), stats.nbinom(2.2, 2.2 / 5.2)) < 1e-4


def _chi_square_p(drawn: np.ndarray, law) -> float:
    edges = np.unique(law.ppf(np.linspace(0.02, 0.98, 25)))
    expected = np.diff(np.r_[0.0, law.cdf(edges), 1.0]) * len(drawn)
    observed = np.bincount(np.searchsorted(edges, drawn), minlength=len(edges) + 1)
    return float(stats.chisquare(observed, expected).pvalue)


@pytest.mark.parametrize("log_ratio", [-1.2, 0.9])
@pytest.mark.parametrize("x", [0, 1, 12])
def test_drawn_counterfactual_given_the_cell_has_the_stated_mean(x, log_ratio):
    n, mean, theta = 40_000, 3.0, 0.6
    wide = np.full(n, float(x)), np.full(n, mean), np.full(n, log_ratio), np.full(n, theta)
    drawn = draw_counterfactual(*wide, np.random.default_rng(1))
    expected = counterfactual_mean(*(v[:1] for v in wide))[0]
    assert drawn.mean() == pytest.approx(expected, abs=5 * drawn.std() / np.sqrt(n) + 1e-12)
    if log_ratio < 0:
        assert drawn.max() <= x
    else:
        assert drawn.min() >= x


def test_drawn_counterfactual_without_change_is_the_cell():
    rng = np.random.default_rng(2)
    x = rng.poisson(5.0, 300).astype(np.float32)
    drawn = draw_counterfactual(x, np.full(300, 2.0), np.zeros(300), np.ones(300), rng)
    np.testing.assert_array_equal(drawn, x)


def test_draws_are_fixed_by_the_generator():
    arguments = np.full(200, 4.0), np.full(200, 5.0), np.linspace(-1, 1, 200), np.full(200, 0.5)
    first, again, other = (draw_counterfactual(*arguments, np.random.default_rng(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(("mean", "theta"), [(0.01, 0.5), (3.0, 0.5), (200.0, 10.0)])
def test_draw_nb_has_the_right_distribution(mean, theta):
    drawn = draw_nb(np.full((200, 300), mean), np.full(300, theta), np.random.default_rng(3))
    law = stats.nbinom(theta, theta / (theta + mean))
    assert drawn.shape == (200, 300)
    assert drawn.mean() == pytest.approx(mean, abs=5 * law.std() / np.sqrt(drawn.size))
    assert drawn.var() == pytest.approx(law.var(), rel=0.1)
    assert (drawn == 0).mean() == pytest.approx(law.pmf(0), abs=0.01)


# ---- expected log-normalised expression ---------------------------------------------------------------------------


def long_sum(mean: float, theta: float, library: float) -> float:
    """The expectation by a sum that leaves out no mass."""
    n_terms = int(mean + 60 * np.sqrt(mean + mean**2 / theta) + 300)
    k = np.arange(min(n_terms, 3_000_000))
    return float((np.exp(exact(k, mean, theta)) * np.log1p(1e4 * k / library)).sum())


def ours(mean: float, theta: float, library: float) -> float:
    return float(expected_lognorm(np.array([[mean]]), np.array([theta]), np.array([library]))[0, 0])


@pytest.mark.parametrize("library", [500.0, 5e3, 5e4])
@pytest.mark.parametrize(
    ("mean", "theta"),
    [(m, t) for m in (1e-3, 0.1, 1.0) for t in (0.3, 1.0, 10.0, 1e3, 1e6)] + [(10.0, 5.0), (10.0, 1e6)],
)
def test_expected_lognorm_is_exact_where_counts_are_small(mean, theta, library):
    assert ours(mean, theta, library) == pytest.approx(long_sum(mean, theta, library), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("library", [500.0, 5e3, 5e4])
@pytest.mark.parametrize("theta", [10.0, 100.0, 1e6])
@pytest.mark.parametrize("mean", [30.0, 60.0, 200.0, 1e3])
def test_expected_lognorm_for_large_means(mean, theta, library):
    """The delta method takes over above 48 counts."""
    assert ours(mean, theta, library) == pytest.approx(long_sum(mean, theta, library), abs=5e-3)


@pytest.mark.parametrize("theta", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("mean", [10.0, 60.0, 1e3])
def test_expected_lognorm_of_dispersed_large_counts_is_a_little_low(mean, theta):
    """Known limit: the tail of a gamma with a small shape is wider than the delta method allows."""
    truth, value = long_sum(mean, theta, 5e3), ours(mean, theta, 5e3)
    assert truth - 0.2 < value < truth + 5e-3


def test_expected_lognorm_agrees_with_draws():
    rng = np.random.default_rng(4)
    mean, theta, library = np.array([[0.2, 2.0, 9.0], [0.05, 0.5, 30.0]]), np.array([0.5, 2.0, 20.0]), [2e3, 8e3]
    draws = np.stack([draw_nb(mean, theta, rng) for _ in range(40_000)])
    y = np.log1p(1e4 * draws / np.array(library)[:, None])
    error = 5 * y.std(axis=0) / np.sqrt(len(y))
    assert (np.abs(expected_lognorm(mean, theta, np.array(library)) - y.mean(axis=0)) < error + 1e-3).all()


def test_expected_lognorm_of_nothing_is_zero_and_it_grows_with_the_mean():
    means = np.r_[0.0, np.geomspace(1e-6, 1e3, 200)][:, None]
    values = expected_lognorm(means, np.array([1.0]), np.full(len(means), 5e3))[:, 0]
    assert values[0] == 0.0
    assert (np.diff(values) > 0).all()


# ---- the class ----------------------------------------------------------------------------------------------------


def test_dispersion_is_positive_and_bounded():
    net = NegativeBinomial(30)
    with torch.no_grad():
        net.log_theta.copy_(torch.linspace(-100, 100, 30))
    assert (net.theta > 0).all()
    assert torch.isfinite(net.theta).all()
    assert net.theta.max().item() == pytest.approx(torch.tensor(12.0).exp().item())


# ---- a dispersion per gene and batch --------------------------------------------------------------------------------


def two_batches(n: int = 3000, n_genes: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Counts with theta 0.7 in batch 0 and 6 in batch 1, library sizes, strata and batches."""
    rng = np.random.default_rng(0)
    batch = rng.integers(2, size=n)
    theta = np.array([0.7, 6.0])[batch][:, None]
    counts = rng.poisson(rng.gamma(np.broadcast_to(theta, (n, n_genes)), 3.0 / theta)).astype(np.float32)
    return counts, np.full(n, 90.0, dtype=np.float32), batch.copy(), batch


def test_each_batch_starts_from_its_own_moments():
    likelihood = NegativeBinomial(30, n_batch=3)
    likelihood.start_from(*two_batches())
    first, second, unseen = likelihood.theta.detach().numpy()
    assert np.median(first) == pytest.approx(0.7, rel=0.1)
    assert np.median(second) == pytest.approx(6.0, rel=0.15)
    assert ((first < unseen) & (unseen < second)).all()  # a batch without cells starts from all others


def test_cells_have_the_dispersion_of_their_batch():
    likelihood = NegativeBinomial(4, n_batch=2)
    rows = torch.tensor([[0.3, 1.0, 2.0, 9.0], [5.0, 0.2, 1.0, 40.0]])
    likelihood.log_theta.data = rows.log()
    batch = torch.tensor([1, 0, 1])
    cells = likelihood.in_batches(batch)
    mean = torch.tensor([0.1, 2.0, 30.0])[:, None].expand(3, 4)
    x = torch.tensor([[0.0, 1.0, 5.0, 70.0]]).expand(3, 4)
    torch.testing.assert_close(cells.log_prob(x, mean.log()), nb_log_prob(x, mean.log(), rows[batch]))
    torch.testing.assert_close(cells.distribution(mean, mean).theta, rows[batch])
    library = np.full(3, 500.0)
    expected = [
        expected_lognorm(mean[[i]].numpy(), rows[b].numpy(), library[[i]])[0] for i, b in enumerate(batch.tolist())
    ]
    np.testing.assert_allclose(cells.expected_lognorm(mean.numpy(), library), expected, rtol=1e-6)
    own = draw_counterfactual(x[0].numpy(), mean[1].numpy(), np.full(4, 0.4), rows[0].numpy(), np.random.default_rng(3))
    drawn = likelihood.in_batches(batch[1:2]).draw_counterfactual(
        x[0].numpy(), mean[1].numpy(), np.full(4, 0.4), np.random.default_rng(3)
    )
    np.testing.assert_array_equal(drawn, own)


def test_what_the_latent_explains_is_taken_off_every_batch_and_given_back():
    likelihood = NegativeBinomial(30, n_batch=2)
    likelihood.start_from(*two_batches())
    before = likelihood.theta.detach().clone()
    assert likelihood.overdispersion.shape == (30,)
    likelihood.leave_to_latent(np.full(30, 0.5))
    torch.testing.assert_close(likelihood.theta.detach(), 2.0 * before)
    likelihood.back_to_training()
    torch.testing.assert_close(likelihood.theta.detach(), before)


def test_one_dispersion_per_gene_is_the_same_object_in_all_batches():
    likelihood = NegativeBinomial(4)
    assert likelihood.in_batches(torch.tensor([0, 1])) is likelihood
