"""The module: which parameters a loss reaches, transport of control, batches of the technical latent, library."""

import numpy as np
import pytest
import torch
from scvi import REGISTRY_KEYS

from cfmvc_scvi._types import FlowContext
from cfmvc_scvi.module import CFMVCModule

N, N_GENES, N_BATCH, N_LABELS, N_PERTURBATION = 12, 20, 2, 3, 4


def make(**kwargs) -> CFMVCModule:
    torch.manual_seed(0)
    defaults = {"n_latent": 5, "n_latent_technical": 3, "n_hidden": 16, "n_basis": 4, "n_hidden_flow": 16}
    return CFMVCModule(N_GENES, N_BATCH, N_LABELS, N_PERTURBATION, **(defaults | kwargs))


def randomised(scale: float = 0.1, **kwargs) -> CFMVCModule:
    """A module none of whose weights is at its start."""
    module = make(**kwargs).eval()
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=scale)
    module.flow_center.normal_()
    module.flow_scale.fill_(1.7)
    return module


def tensors(**extra: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        REGISTRY_KEYS.X_KEY: torch.poisson(torch.full((N, N_GENES), 3.0)),
        REGISTRY_KEYS.BATCH_KEY: torch.randint(0, N_BATCH, (N, 1)),
        REGISTRY_KEYS.LABELS_KEY: torch.randint(0, N_LABELS, (N, 1)),
    } | extra


def cells() -> tuple[torch.Tensor, torch.Tensor, FlowContext]:
    """Latents, perturbation vectors and contexts."""
    torch.manual_seed(2)
    codes = torch.stack([torch.randint(0, N_BATCH, (N,)), torch.randint(0, N_LABELS, (N,))], dim=1)
    return torch.randn(N, 5), torch.randn(N, N_PERTURBATION), FlowContext(*codes.T)


def with_gradient(module: CFMVCModule) -> set[str]:
    return {name for name, weight in module.named_parameters() if weight.grad is not None and bool(weight.grad.any())}


def names_of(module: CFMVCModule, parts: list[torch.nn.Module]) -> set[str]:
    ids = {id(weight) for part in parts for weight in part.parameters()}
    return {name for name, weight in module.named_parameters() if id(weight) in ids}


# ---- gradients ----------------------------------------------------------------------------------------------------


def test_parts_of_both_stages_are_all_there_is():
    module = make()
    vae, flow = names_of(module, module.vae_parts), names_of(module, module.flow_parts)
    assert not vae & flow
    assert vae | flow == {name for name, _ in module.named_parameters()}


def test_stage_1_reaches_the_vae_only():
    module = randomised()
    module(tensors())[2].loss.backward()
    assert with_gradient(module) == names_of(module, module.vae_parts)


@pytest.mark.parametrize("energy_weight", [0.0, 1.0])
def test_stage_2_reaches_the_flow_only(energy_weight):
    module = randomised(labels_in_effect=True, labels_in_context=True, energy_weight=energy_weight)
    z, p, context = cells()
    module.flow_loss(z, z + 1, torch.rand(N), context, p).backward()
    assert with_gradient(module) == names_of(module, module.flow_parts)


def test_energy_term_has_a_gradient_of_its_own():
    z, p, context = cells()
    gradients = []
    for weight in (0.0, 1.0):
        module = randomised(energy_weight=weight)
        module.flow_loss(z, z.flip(0) + 1, torch.full((N,), 0.5), context, p).backward()
        gradients.append(module.flow_field.direction.grad)
    assert not torch.allclose(*gradients)


def test_flow_loss_is_the_squared_error_of_the_velocity():
    module = randomised()
    z, p, context = cells()
    z1, t = z.flip(0) + 1, torch.rand(N)
    velocity = module.velocity(z + t[:, None] * (z1 - z), t, context, p).total
    expected = ((velocity - (z1 - z)) ** 2).sum() / N
    torch.testing.assert_close(module.flow_loss(z, z1, t, context, p), expected)


# ---- transport ----------------------------------------------------------------------------------------------------


def test_coefficients_of_control_are_zero():
    module = randomised(labels_in_effect=True)
    labels = torch.arange(N_LABELS)
    assert torch.equal(module.coefficients(torch.zeros(N_LABELS, N_PERTURBATION), labels), torch.zeros(N_LABELS, 4))
    assert module.coefficients(torch.ones(N_LABELS, N_PERTURBATION), labels).abs().min() > 0


@pytest.mark.parametrize("labels_in_context", [False, True])
def test_cell_type_enters_the_context_only_where_asked(labels_in_context):
    module = randomised(labels_in_context=labels_in_context, n_spatial=2)
    codes = torch.zeros(N_LABELS, 2, dtype=torch.long)
    codes[:, 1] = torch.arange(N_LABELS)
    encoded = module.encode_context(FlowContext(*codes.T, spatial=torch.zeros(N_LABELS, 2)))
    assert encoded.shape[1] == (32 if labels_in_context else 24)
    assert len(encoded.unique(dim=0)) == (N_LABELS if labels_in_context else 1)


def test_coordinates_are_standardised():
    module = randomised(n_spatial=2)
    module.spatial_center.copy_(torch.tensor([1000.0, -50.0]))
    module.spatial_scale.copy_(torch.tensor([300.0, 20.0]))
    codes = torch.zeros(4, 2, dtype=torch.long)
    units = torch.randn(4, 2)
    raw = module.encode_context(FlowContext(*codes.T, spatial=units * module.spatial_scale + module.spatial_center))
    module.spatial_center.zero_()
    module.spatial_scale.fill_(1.0)
    torch.testing.assert_close(raw, module.encode_context(FlowContext(*codes.T, spatial=units)), rtol=1e-3, atol=1e-4)


# ---- batches of the technical latent ------------------------------------------------------------------------------


def test_technical_prior_depends_on_batch_and_intrinsic_does_not():
    module = make()
    outputs = module(tensors(), compute_loss=False)[1]
    batch = tensors()[REGISTRY_KEYS.BATCH_KEY].squeeze(-1)
    prior, intrinsic = outputs["pz_technical"], outputs["pz"]
    assert torch.equal(intrinsic.loc, torch.zeros(N, 5))
    assert torch.equal(intrinsic.scale, torch.ones(N, 5))
    assert len(prior.loc.unique(dim=0)) == len(batch.unique()) == N_BATCH
    torch.testing.assert_close(prior.loc, module.tech_prior_mean.weight[batch])


def test_moving_to_another_batch_and_back():
    module = randomised(0.8)
    z = torch.randn(N, 3)
    source = torch.randint(0, N_BATCH, (N,))
    there = module.move_batch(z, source, 1 - source)
    torch.testing.assert_close(module.move_batch(there, 1 - source, source), z)
    torch.testing.assert_close(module.move_batch(z, source, source), z)
    assert not torch.isclose(there, z).any()
    p, q = module.technical_prior(source), module.technical_prior(1 - source)
    torch.testing.assert_close(p.cdf(z), q.cdf(there))  # the same quantile of the other batch's prior


def test_decode_batch_is_reached():
    module = randomised(0.5)
    data = tensors()
    inference, plain = module(data, compute_loss=False)
    arguments = module._get_generative_input(data, inference)
    moved = module.generative(**arguments, transform_batch=1)
    own = data[REGISTRY_KEYS.BATCH_KEY].squeeze(-1) == 1
    torch.testing.assert_close(moved["px"].mean[own], plain["px"].mean[own])
    assert not torch.isclose(moved["px"].mean[~own], plain["px"].mean[~own]).all(dim=-1).any()
    torch.testing.assert_close(moved["pz_technical"].loc, module.tech_prior_mean.weight[1].expand(N, -1))


# ---- forward, loss and library ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_samples", [1, 3])
def test_forward_of_a_dict_of_tensors(n_samples):
    inference, generative = make()(tensors(), inference_kwargs={"n_samples": n_samples}, compute_loss=False)
    lead = (N,) if n_samples == 1 else (n_samples, N)
    assert inference["z"].shape == (*lead, 5)
    assert inference["z_technical"].shape == (*lead, 3)
    assert generative["px"].mean.shape == (*lead, N_GENES)


def test_forward_with_further_covariates():
    module = randomised(n_cats_per_cov=[2, 3], n_continuous_cov=2)
    extra = {
        REGISTRY_KEYS.CAT_COVS_KEY: torch.stack([torch.randint(0, 2, (N,)), torch.randint(0, 3, (N,))], dim=1),
        REGISTRY_KEYS.CONT_COVS_KEY: torch.randn(N, 2),
    }
    means, others = [], {"continuous": extra | {REGISTRY_KEYS.CONT_COVS_KEY: extra[REGISTRY_KEYS.CONT_COVS_KEY] + 1}}
    others["categorical"] = extra | {REGISTRY_KEYS.CAT_COVS_KEY: 1 - extra[REGISTRY_KEYS.CAT_COVS_KEY] % 2}
    for given in (extra, *others.values()):
        means.append(module(tensors(**given), compute_loss=False)[0]["qz"].loc)
    for name, changed in zip(others, means[1:], strict=True):
        assert (changed != means[0]).any(dim=1).all(), f"{name} covariates are ignored"


def test_loss_is_the_weighted_bound():
    module = make(kl_weight_intrinsic=0.3, kl_weight_technical=0.7)
    loss = module(tensors(), loss_kwargs={"kl_weight": 0.5})[2]
    intrinsic, technical = (loss.kl_local[f"kl_divergence_{name}"] for name in ("intrinsic", "technical"))
    assert intrinsic.shape == technical.shape == (N,)
    expected = (loss.reconstruction_loss["reconstruction_loss"] + 0.5 * (0.3 * intrinsic + 0.7 * technical)).mean()
    torch.testing.assert_close(loss.loss, expected)


def test_reconstruction_is_the_likelihood_of_the_decoded_distribution():
    module = make()
    data = tensors()
    inference, generative, loss = module(data)
    expected = -generative["px"].log_prob(data[REGISTRY_KEYS.X_KEY]).sum(dim=-1)
    torch.testing.assert_close(loss.reconstruction_loss["reconstruction_loss"], expected, rtol=1e-4, atol=1e-3)


def test_library_is_the_row_sum_or_the_size_factor():
    data = tensors()
    total = data[REGISTRY_KEYS.X_KEY].sum(dim=-1, keepdim=True)
    inference, generative = make()(data, compute_loss=False)
    torch.testing.assert_close(inference["library"], total.log())
    torch.testing.assert_close(generative["px"].mean.sum(dim=-1, keepdim=True), total)
    factor = total * 10
    inference, generative = make(panel=True)(tensors(**{REGISTRY_KEYS.SIZE_FACTOR_KEY: factor}), compute_loss=False)
    torch.testing.assert_close(inference["library"], factor.log())
    assert (generative["px"].mean.sum(dim=-1, keepdim=True) < factor).all()


def test_encoder_sees_shares_not_depth():
    """Ten times the counts at ten times the library is the same cell."""
    module = make()
    data = tensors()
    deep = data | {REGISTRY_KEYS.X_KEY: data[REGISTRY_KEYS.X_KEY] * 10}
    torch.testing.assert_close(
        module(deep, compute_loss=False)[0]["qz"].loc, module(data, compute_loss=False)[0]["qz"].loc
    )


@pytest.mark.parametrize("count", [0.0, 1e6])
def test_empty_and_enormous_cells_stay_finite(count):
    module = make()
    data = tensors()
    data[REGISTRY_KEYS.X_KEY][0] = count
    loss = module(data)[2]
    loss.loss.backward()
    assert torch.isfinite(loss.loss)
    assert all(torch.isfinite(weight.grad).all() for weight in module.parameters() if weight.grad is not None)


def test_likelihood_is_float32_under_bfloat16():
    module = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, generative, loss = module(tensors())
    assert generative["log_mean"].dtype == torch.float32
    assert loss.reconstruction_loss["reconstruction_loss"].dtype == torch.float32
    torch.manual_seed(0)
    exact = make()(tensors())[2].loss
    torch.testing.assert_close(loss.loss, exact, rtol=0.05, atol=0.0)


def test_integer_counts_are_accepted():
    module, losses = make(), []
    for data in (tensors(), tensors(**{REGISTRY_KEYS.X_KEY: tensors()[REGISTRY_KEYS.X_KEY].int()})):
        torch.manual_seed(3)
        losses.append(module(data)[2].loss)
    assert torch.equal(*losses)


def test_sample_draws_counts():
    module = make()
    drawn = module.sample(tensors(), n_samples=4)
    assert drawn.shape == (N, N_GENES, 4)
    assert module.sample(tensors()).shape == (N, N_GENES)
    np.testing.assert_array_equal(drawn, drawn.round())
    assert (drawn >= 0).all()
    assert drawn.std(dim=-1).max() > 0
