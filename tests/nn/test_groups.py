"""Groups of cells that share their coefficients."""

from __future__ import annotations

import torch

from cfmvc_scvi.nn.groups import Groups


def test_every_cell_meets_the_map_of_its_group():
    codes = torch.tensor([7, 0, 3, 3, 7, 7, 0, 3, 3])
    groups = Groups.of(codes)
    h = torch.randn(9, 4, dtype=torch.float64)
    maps, offsets = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    expected = torch.einsum("noi,ni->no", maps[groups.group], h) + offsets[groups.group]
    torch.testing.assert_close(groups.affine(h, maps, offsets), expected)
    assert groups.sizes.tolist() == [2, 4, 3] and groups.width == 4
    assert codes[groups.members].tolist() == [0, 3, 7]


def test_grouping_pays_for_few_groups_of_even_size():
    assert Groups.of(torch.arange(1024) % 6).worth_it(16)
    assert not Groups.of(torch.cat([torch.arange(200), torch.zeros(56, dtype=torch.long)])).worth_it(16)
    assert not Groups.of(torch.arange(9)).worth_it(16)
