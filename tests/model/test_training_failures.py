"""Training that fails, and calls that are refused: what is said, and what stays usable."""

from __future__ import annotations

import numpy as np
import pytest
from lightning.pytorch.callbacks import Callback

VAE_KEYS = {"elbo_train", "elbo_validation"}


def assert_usable_after_stage_1(model):
    assert model.is_vae_trained_ and not model.is_flow_trained_ and not model.is_trained
    assert not any(module.training for module in model.module.modules())
    assert all(p.requires_grad for p in model.module.parameters())
    assert np.isfinite(model.get_latent_representation()).all()
    assert set(model.history) >= VAE_KEYS
    with pytest.raises(RuntimeError, match=r"flow is not trained.*model\.train_flow\(\)"):
        model.predict_perturbation()


def test_divergence_of_stage_2(simulated, build, fit, quiet, monkeypatch):
    model = build(simulated)
    real = model.module.flow_loss
    with monkeypatch.context() as patch:
        patch.setattr(model.module, "flow_loss", lambda *args: real(*args) * float("nan"))
        with pytest.raises(FloatingPointError, match=r"stage 2 \(flow\) diverged in epoch 0.*flow_plan_kwargs"):
            fit(model)
    assert_usable_after_stage_1(model)
    model.train_flow(1, **quiet)
    assert np.isfinite(model.predict_perturbation(perturbation="P1").X).all()


def test_a_learning_rate_that_is_far_too_high(simulated, build, fit):
    model = build(simulated)
    with pytest.raises(FloatingPointError, match=r"stage 2 \(flow\).*lower one, `flow_plan_kwargs=\{'lr': 1e\+28\}`"):
        fit(model, flow_max_epochs=20, flow_plan_kwargs={"lr": 1e29})
    assert_usable_after_stage_1(model)


def test_divergence_of_stage_1(simulated, build, fit):
    model = build(simulated)
    with pytest.raises(FloatingPointError, match=r"stage 1 \(VAE\) diverged.*vae_plan_kwargs"):
        fit(model, vae_max_epochs=20, vae_plan_kwargs={"lr": 1e30})
    assert not model.is_vae_trained_ and not model.is_trained
    assert not any(module.training for module in model.module.modules())
    with pytest.raises(RuntimeError, match="Train the model"):
        model.get_latent_representation()


@pytest.mark.parametrize(("plan_name", "stage"), [("VAETrainingPlan", "stage 1"), ("FlowTrainingPlan", "stage 2")])
def test_divergence_in_the_last_step(simulated, build, fit, plan_name, stage):
    class Spoil(Callback):
        def on_train_end(self, trainer, plan):
            if type(plan).__name__ == plan_name:
                parts = plan.module.vae_parts if stage == "stage 1" else plan.module.flow_parts
                next(parts[0].parameters()).data.fill_(float("nan"))

    model = build(simulated)
    with pytest.raises(FloatingPointError, match=rf"{stage} .* diverged in its last epoch"):
        fit(model, callbacks=[Spoil()])
    assert not model.is_trained and model.is_vae_trained_ == (stage == "stage 2")


def test_any_error_in_stage_2_leaves_stage_1_usable(simulated, build, fit):
    class Broken(Callback):
        def on_train_epoch_end(self, trainer, plan):
            if "Flow" in type(plan).__name__:
                raise RuntimeError("broken callback")

    model = build(simulated)
    with pytest.raises(RuntimeError, match="broken callback"):
        fit(model, callbacks=[Broken()])
    assert_usable_after_stage_1(model)


@pytest.mark.parametrize(
    ("argument", "given"),
    [("vae_plan_kwargs", {"lrr": 1}), ("flow_plan_kwargs", {"lrr": 1})],
)
def test_unknown_plan_arguments(simulated, build, fit, argument, given):
    model = build(simulated)
    with pytest.raises(TypeError, match="lrr"):
        fit(model, **{argument: given})
    assert not model.history  # refused before any training


def test_unknown_trainer_argument(simulated, build, fit):
    with pytest.raises(TypeError, match="max_epoch"):
        fit(build(simulated), max_epoch=3)


def test_callers_callbacks_are_not_changed(simulated, build, fit):
    callbacks = [Callback()]
    fit(build(simulated), callbacks=callbacks, early_stopping=True)
    assert len(callbacks) == 1 and type(callbacks[0]) is Callback


def test_caller_arguments_are_not_changed(simulated, build, fit):
    plans = {"vae_plan_kwargs": {"lr": 1e-3}, "flow_plan_kwargs": {"lr": 1e-3}}
    fit(build(simulated), **plans)
    assert plans == {"vae_plan_kwargs": {"lr": 1e-3}, "flow_plan_kwargs": {"lr": 1e-3}}


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m.get_latent_representation(),
        lambda m: m.predict_perturbation(perturbation="P1"),
        lambda m: m.generate_cells("P1", 3),
        lambda m: m.get_effect_coefficients(),
        lambda m: m.get_perturbation_embedding(),
        lambda m: m.get_velocity(),
        lambda m: m.train_flow(1),
    ],
)
def test_untrained_models_say_what_to_call(simulated, build, use):
    model = build(simulated)
    assert not model.is_trained
    with pytest.raises(RuntimeError, match=r"model\.train\(\)"):
        use(model)


def test_retraining_the_vae_drops_the_flow(simulated, build, fit, quiet):
    model = fit(build(simulated))
    model.train_vae(1, **quiet)
    assert model.is_vae_trained_ and not model.is_flow_trained_ and not model.is_trained
    with pytest.raises(RuntimeError, match="train_flow"):
        model.predict_perturbation()


@pytest.mark.slow
def test_no_control_among_the_training_cells(simulated, build, quiet):
    rows = np.flatnonzero(simulated.obs["perturbation"] == "control")
    simulated.obs["perturbation"] = simulated.obs["perturbation"].astype(str)
    simulated.obs.iloc[rows[1:], simulated.obs.columns.get_loc("perturbation")] = "P1"
    model = build(simulated)
    model.train_vae(1, train_size=0.5, **quiet)
    model.split_ = [np.setdiff1d(model.split_[0], rows[:1]), np.union1d(model.split_[1], rows[:1]), model.split_[2]]
    with pytest.raises(ValueError, match=r"no control cells among the training cells.*'control'"):
        model.train_flow(1, **quiet)


@pytest.mark.parametrize(("argument", "value"), [("flow_source", "controls"), ("coupling", "sinkhorn")])
def test_unknown_choices(simulated, build, argument, value):
    with pytest.raises(ValueError, match=rf"`{argument}` '{value}'.*choose"):
        build(simulated, **{argument: value})
