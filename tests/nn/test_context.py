"""Context and adapter: dimensions, and no effect of control whatever the weights."""

import pytest
import torch

from cfmvc_scvi.nn import ContextEncoder, PerturbationAdapter

N_LABELS = 6


def adapter(n_labels: int = N_LABELS, scale: float | None = 1.0) -> PerturbationAdapter:
    torch.manual_seed(0)
    net = PerturbationAdapter(5, n_labels, 4, n_hidden=16)
    if scale is not None:
        for weight in net.parameters():
            torch.nn.init.normal_(weight, std=scale)
    return net


def all_labels() -> torch.Tensor:
    return torch.arange(N_LABELS)


@pytest.mark.parametrize("n_labels", [0, N_LABELS])
@pytest.mark.parametrize("scale", [None, 0.1, 10.0])
def test_control_has_no_effect_in_any_cell_type(n_labels, scale):
    net = adapter(n_labels, scale)
    zeros = torch.zeros(N_LABELS, 4)
    assert torch.equal(net(torch.zeros(N_LABELS, 5), all_labels()), zeros)
    assert not torch.equal(net(torch.ones(N_LABELS, 5), all_labels()), zeros)


@pytest.mark.parametrize("n_labels", [0, N_LABELS])
def test_control_has_no_effect_after_training(n_labels):
    """Steps with weight decay on mixed cells, controls among them."""
    net = adapter(n_labels)
    before = [weight.detach().clone() for weight in net.parameters()]
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    p = torch.randn(N_LABELS, 5)
    p[::2] = 0
    for _ in range(5):
        optimiser.zero_grad()
        (net(p, all_labels()) - 3.0).square().sum().backward()
        optimiser.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert torch.equal(net(torch.zeros(N_LABELS, 5), all_labels()), torch.zeros(N_LABELS, 4))


def test_no_layer_has_a_bias():
    assert not [name for name, _ in adapter().named_parameters() if "bias" in name]


def test_cell_types_share_one_effect_at_first_and_differ_after():
    alpha = adapter(scale=None)(torch.ones(N_LABELS, 5), all_labels())
    assert torch.equal(alpha, alpha[:1].expand_as(alpha))
    alpha = adapter(scale=0.3)(torch.ones(N_LABELS, 5), all_labels())
    assert alpha.unique(dim=0).shape[0] == N_LABELS


def test_without_labels_the_cell_type_is_ignored():
    net = adapter(0)
    p = torch.randn(1, 5).expand(N_LABELS, -1)
    assert torch.equal(net(p, all_labels()), net(p, all_labels().flip(0)))


@pytest.mark.parametrize(
    ("categories", "n_continuous", "n_spatial", "n_out"),
    [([3], 0, 0, 8), ([3, 4], 0, 0, 16), ([3, 4], 0, 2, 32), ([3, 4, 5], 2, 3, 42), ([3], 1, 0, 9)],
)
def test_context_dimensions(categories, n_continuous, n_spatial, n_out):
    encoder = ContextEncoder(categories, n_continuous, n_spatial)
    codes = [torch.randint(0, n, (7,)) for n in categories]
    continuous = torch.randn(7, n_continuous) if n_continuous else None
    spatial = torch.randn(7, n_spatial) if n_spatial else None
    assert encoder.n_out == n_out
    assert encoder(codes, continuous, spatial).shape == (7, n_out)


def test_context_depends_on_every_part():
    torch.manual_seed(0)
    encoder = ContextEncoder([2, 2], 1, 2)
    parts = {"codes": torch.zeros(2, 1).long(), "continuous": torch.zeros(1, 1), "spatial": torch.zeros(1, 2)}

    def encode(codes, continuous, spatial):
        return encoder(codes.unbind(), continuous, spatial)

    base = encode(**parts)
    for name, value in parts.items():
        assert not torch.equal(encode(**(parts | {name: value + 1})), base), name
