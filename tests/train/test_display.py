"""What a training shows."""

import logging
import warnings

import pytest

from cfmvc_scvi.train.display import quiet_lightning


@pytest.mark.slow
def test_two_named_bars_and_nothing_else(simulate, build, capfd):
    model = build(simulate())
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.train(vae_max_epochs=2, flow_max_epochs=2, accelerator="cpu")
    shown = "".join(capfd.readouterr())
    assert "1/2 autoencoder, epoch 2/2" in shown and "2/2 flow, epoch 2/2" in shown
    assert not [word for word in ("GPU", "TPU", "Tip", "stopped", "Loading") if word in shown]
    assert not [str(w.message) for w in caught if "lightning" in w.filename]


def test_loggers_are_as_before_afterwards():
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        with quiet_lightning():
            assert logger.level == logging.DEBUG
        logger.setLevel(logging.INFO)
        with quiet_lightning():
            assert logger.level == logging.WARNING
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)
