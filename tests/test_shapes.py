"""That the shapes in the signatures are checked while the tests run, and that the package does without beartype."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from jaxtyping import TypeCheckError

from cfmvc_scvi.flow import LinearPath, energy_distance


@pytest.mark.parametrize(
    "call",
    [
        lambda: LinearPath().sample(torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(3)),
        lambda: LinearPath().sample(torch.zeros(4, 2), torch.zeros(4, 3), torch.zeros(4)),
        lambda: energy_distance(torch.zeros(4, 2), torch.zeros(4, 2).long()),
    ],
    ids=["times of other cells", "points of another space", "whole numbers"],
)
def test_a_wrong_shape_is_refused(call):
    with pytest.raises(TypeCheckError):
        call()


@pytest.mark.slow
def test_beartype_is_not_needed():
    script = "import sys; sys.modules['beartype'] = None; import cfmvc_scvi"
    assert subprocess.run([sys.executable, "-c", script], check=True).returncode == 0
