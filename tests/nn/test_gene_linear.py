"""A linear map of expression that is mostly zero."""

import numpy as np
import pytest
import torch
from scipy import sparse

from cfmvc_scvi._sparse import SparseRows
from cfmvc_scvi.nn import gene_linear
from cfmvc_scvi.nn.gene_linear import GeneLinear

N, G, OUT = 9, 14, 5


def expression(dtype=np.float64, density: float = 0.2) -> SparseRows:
    """Rows with a cell and a gene that have no entry."""
    dense = sparse.random(N, G, density, random_state=1, dtype=dtype).toarray()
    dense[3], dense[:, 6] = 0.0, 0.0
    return SparseRows.from_scipy(sparse.csr_matrix(dense))


def layer(dtype=torch.float64) -> GeneLinear:
    torch.manual_seed(0)
    return GeneLinear(G, OUT).to(dtype)


def outputs_and_gradients(linear: GeneLinear, x: torch.Tensor | SparseRows) -> list[torch.Tensor]:
    out = linear(x)
    factor = torch.arange(out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * factor).sum(), list(linear.parameters()))]


@pytest.mark.parametrize(("dtype", "numpy_dtype"), [(torch.float32, np.float32), (torch.float64, np.float64)])
def test_sparse_and_dense_agree_with_the_product(dtype, numpy_dtype):
    linear, x = layer(dtype), expression(numpy_dtype)
    sparse_way, dense_way = (outputs_and_gradients(linear, given) for given in (x, x.dense()))
    torch.testing.assert_close(dense_way[0], x.dense() @ linear.weight + linear.bias)
    for a, b in zip(sparse_way, dense_way, strict=True):
        torch.testing.assert_close(a, b)
    assert not sparse_way[1][6].any()  # the gene that no cell expresses


def test_gradients_are_numerically_right():
    x = expression()
    weight, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((G, OUT), (OUT,)))
    assert torch.autograd.gradcheck(lambda w, b: gene_linear._SparseLinear.apply(x, w, b), (weight, bias))


def test_cells_without_any_counts():
    linear, nothing = layer(), SparseRows.from_scipy(sparse.csr_matrix((4, G)))
    out, by_weight, _ = outputs_and_gradients(linear, nothing)
    assert torch.equal(out, linear.bias.expand(4, OUT)) and not by_weight.any()


@pytest.mark.parametrize(("below", "expected"), [(1.0, 1), (0.0, 0)])
def test_which_way_is_taken_depends_on_the_density(monkeypatch, below, expected):
    taken = []
    monkeypatch.setattr(GeneLinear, "SPARSE_BELOW", below)
    monkeypatch.setattr(SparseRows, "product", lambda self, matrix: taken.append(1) or torch.zeros(N, OUT))
    layer()(expression())
    assert len(taken) == expected


def test_autocast_keeps_its_precision():
    linear, x = layer(torch.float32), expression(np.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = linear(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), linear(x), rtol=0.05, atol=0.05)


def test_parts_without_an_entry_and_the_last_one_smaller():
    parts = list(expression().parts(4))
    assert [len(part) for part in parts] == [4, 4, 1]
    assert torch.equal(torch.cat([part.dense() for part in parts]), expression().dense())
    for part in parts:
        np.testing.assert_array_equal(part.transposed.dense(), part.dense().T)
