"""Building blocks: a linear map of two inputs side by side."""

import pytest
import torch
from torch.nn import functional as F

from cfmvc_scvi.nn.blocks import side_by_side_linear


def inputs(dtype=torch.float64) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = ((5, 7), (5, 3), (4, 10), (4,))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def test_it_is_the_linear_map_of_the_joined_inputs():
    first, second, weight, bias = inputs()
    ours = side_by_side_linear(first, second, weight, bias)
    joined = F.linear(torch.cat([first, second], dim=1), weight, bias)
    torch.testing.assert_close(ours, joined)
    factor = torch.arange(ours.numel()).view_as(ours)
    wanted = (first, second, weight, bias)
    for a, b in zip(
        torch.autograd.grad((ours * factor).sum(), wanted),
        torch.autograd.grad((joined * factor).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
        assert a.is_contiguous()


def test_gradients_are_numerically_right():
    assert torch.autograd.gradcheck(side_by_side_linear, inputs())


@pytest.mark.parametrize("which", [0, 1])
def test_an_input_may_need_no_gradient(which):
    wanted = inputs()
    wanted[which] = wanted[which].detach()
    side_by_side_linear(*wanted).sum().backward()
    assert [x.grad is None for x in wanted] == [i == which for i in range(4)]


def test_autocast_keeps_its_precision():
    first, second, weight, bias = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = side_by_side_linear(first, second, weight, bias)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(
        out.float(), F.linear(torch.cat([first, second], dim=1), weight, bias), rtol=0.05, atol=0.1
    )
