import numpy as np
import pytest

from cfmvc_scvi import CFMVC
from cfmvc_scvi.prediction.trained import confounded_with_batch


@pytest.mark.slow
def test_answers_say_that_a_perturbation_cannot_be_told_from_its_batch(simulate, build, quiet):
    adata = simulate(n_cells=240, n_pairs=0)
    label = adata.obs["perturbation"].astype(str)
    adata.obs["batch"] = np.where(label == "P1", "tuesday", np.where(np.arange(adata.n_obs) % 2, "monday", "sunday"))
    with pytest.warns(UserWarning, match="confounded"):
        model = build(adata, {})
    model.train(vae_max_epochs=1, flow_max_epochs=1, **quiet)
    assert [members for members, _ in model.confounded_] == [("P1",)]
    with pytest.warns(UserWarning, match=r"\['P1'\]: measured only in batches without control cells"):
        predicted = model.predict_perturbation(perturbation="P1")
    assert predicted.uns["cfmvc"]["confounded_with_batch"] == ["P1"]
    with pytest.warns(UserWarning, match="cannot tell the perturbation from the batch"):
        assert model.get_perturbation_effect("P1").attrs["confounded_with_batch"]
    assert model.predict_perturbation(perturbation="P2").uns["cfmvc"]["confounded_with_batch"] == []
    assert not model.get_perturbation_effect("P2").attrs["confounded_with_batch"]


def test_a_perturbation_that_was_also_measured_beside_controls_is_not_confounded(trained):
    assert isinstance(trained, CFMVC)
    cache = trained._latents()
    rows = trained._split.train
    assert confounded_with_batch(cache, rows) == trained.confounded_ == []
    batch, condition = cache.cells.context.batch.numpy(), cache.condition
    apart = rows[(condition[rows] == 0) == (batch[rows] == 0)]  # controls in the first batch, the others elsewhere
    found = {members for members, _ in confounded_with_batch(cache, apart)}
    assert found == {cache.conditions[code].members for code in np.unique(condition[apart]) if code}
