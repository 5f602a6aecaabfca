import numpy as np
import pytest

from cfmvc_scvi import pl


def test_posterior_predictive_check(trained):
    check = trained.posterior_predictive_check()
    figure = pl.posterior_predictive_check(check)
    assert [ax.get_title() for ax in figure.axes] == ["mean count", "variance", "share of zeros"]
    points = figure.axes[2].collections[0].get_offsets()
    np.testing.assert_allclose(points, check.genes[["zeros", "zeros_drawn"]].to_numpy())
    with pytest.raises(TypeError, match="posterior_predictive_check"):
        pl.posterior_predictive_check(check.genes)
