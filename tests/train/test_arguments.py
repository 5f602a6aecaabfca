"""Arguments of a training."""

import pytest


@pytest.mark.parametrize("argument", ["vae_max_epochs", "flow_max_epochs", "batch_size", "flow_batch_size"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (5.0, TypeError), ("5", TypeError)])
def test_sizes_are_whole_numbers_from_one_on(simulated, build, argument, value, error):
    with pytest.raises(error, match=f"`{argument}` is .*whole number of at least 1"):
        build(simulated).train(**{argument: value})


@pytest.mark.parametrize("stage", ["train_vae", "train_flow"])
@pytest.mark.parametrize("argument", ["max_epochs", "batch_size"])
def test_sizes_of_one_stage_too(simulated, build, stage, argument):
    with pytest.raises(ValueError, match=f"`{argument}` is 0"):
        getattr(build(simulated), stage)(**{argument: 0})


@pytest.mark.parametrize("size", ["n_latent", "n_latent_technical", "n_hidden", "n_layers", "n_basis", "n_hidden_flow"])
def test_sizes_of_the_networks(simulated, build, size):
    for value, error in ((0, ValueError), (8.0, TypeError)):
        with pytest.raises(error, match=f"`{size}` is {value}"):
            build(simulated, **{size: value})


@pytest.mark.parametrize("argument", [{"max_epochs": 5}, {"plan_kwargs": {"lr": 1e-3}}])
def test_arguments_that_each_stage_has_of_its_own(simulated, build, argument):
    [name] = argument
    with pytest.raises(TypeError, match=f"`vae_{name}=` and `flow_{name}=`"):
        build(simulated).train(**argument)


@pytest.mark.parametrize("monitor", ["elbo_validation", "reconstruction_loss_validation", "flow_loss_validation"])
def test_a_monitor_of_one_stage_leaves_the_other_alone(simulated, build, fit, monitor):
    model = fit(build(simulated), early_stopping=True, early_stopping_monitor=monitor)
    assert model.is_flow_trained_
