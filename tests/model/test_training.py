"""Training: two stages on one split, each with its own networks, history and stopping."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from scvi.train import SaveCheckpoint

from cfmvc_scvi import CFMVC
from cfmvc_scvi.train import VAETrainingPlan
from cfmvc_scvi.train.arguments import epochs_for, flow_steps

VAE_KEYS = {"train_loss", "elbo_train", "elbo_validation", "reconstruction_loss_train", "kl_local_validation"}
FLOW_KEYS = {"flow_loss_train", "flow_loss_validation"}


def state(parts) -> list[torch.Tensor]:
    return [value.clone() for part in parts for value in part.state_dict().values()]


def same(first, second) -> bool:
    return len(first) == len(second) > 0 and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Recorder(Callback):
    """What every batch is trained with."""

    def __init__(self):
        self.seen: dict[str, set] = {}
        self.monitors: dict[str, list[str]] = {}
        self.clipping: list[float] = []
        self.kl_weights: list[float] = []
        self.wide_gradients: dict[str, set] = {}

    def on_train_start(self, trainer, plan):
        stops = [c for c in trainer.callbacks if isinstance(c, EarlyStopping)]
        self.monitors[type(plan).__name__] = [c.monitor for c in stops]
        self.clipping.append(trainer.gradient_clip_val)

    def on_train_batch_start(self, trainer, plan, batch, batch_idx):
        self._record(plan, "train")
        if isinstance(plan, VAETrainingPlan):
            self.kl_weights.append(float(plan.kl_weight))

    def on_validation_batch_start(self, trainer, plan, batch, batch_idx, dataloader_idx=0):
        self._record(plan, "validate")

    def on_before_optimizer_step(self, trainer, plan, optimizer):
        parts = {"vae": plan.module.vae_parts, "flow": plan.module.flow_parts}
        have = {k for k, ps in parts.items() if any(p.grad is not None for part in ps for p in part.parameters())}
        self.wide_gradients.setdefault(type(plan).__name__, set()).update(have)

    def _record(self, plan, phase):
        for name, parts in (("vae", plan.module.vae_parts), ("flow", plan.module.flow_parts)):
            modes = {module.training for part in parts for module in part.modules()}
            grads = {p.requires_grad for part in parts for p in part.parameters()}
            self.seen.setdefault(f"{type(plan).__name__} {phase}", set()).add((name, *modes, *grads))


def test_steps_of_the_flow_have_a_cap():
    assert [flow_steps(n) for n in (1, 100, 965, 966, 10_000)] == [720, 2_700, 20_000, 20_000, 20_000]


# ---- histories and state --------------------------------------------------------------------------------------


def test_history_holds_both_stages(simulated, build, fit):
    model = fit(build(simulated), vae_max_epochs=3, flow_max_epochs=4)
    assert set(model.history) >= VAE_KEYS | FLOW_KEYS
    for key in VAE_KEYS:
        assert len(model.history[key]) == 3
    for key in FLOW_KEYS:
        assert len(model.history[key]) == 4
    for frame in model.history.values():
        assert np.isfinite(frame.to_numpy(dtype=float)).all()
        assert frame.index.is_unique and frame.index.name == "epoch"
    assert model.is_trained and model.is_vae_trained_ and model.is_flow_trained_


def test_training_again_appends_to_the_history(simulated, build, fit):
    model = fit(build(simulated))
    first = {key: frame.copy() for key, frame in model.history.items()}
    fit(model)
    for key, frame in first.items():
        assert len(model.history[key]) == 2 * len(frame)
        np.testing.assert_array_equal(model.history[key].to_numpy()[: len(frame)], frame.to_numpy())
        assert model.history[key].index.tolist() == list(range(2 * len(frame)))


def test_training_again_trains_in_train_mode(simulated, build, fit):
    model, recorder = fit(build(simulated, dropout=0.1)), Recorder()
    fit(model, callbacks=[recorder])
    assert ("vae", True, True) in recorder.seen["VAETrainingPlan train"]
    assert ("flow", True, True) in recorder.seen["FlowTrainingPlan train"]


def test_stages_one_by_one_are_train(simulated, build, fit, quiet):
    whole, parts = build(simulated), build(simulated.copy())
    fit(whole)
    parts.train_vae(2, **quiet)
    assert parts.is_vae_trained_ and not parts.is_flow_trained_ and not parts.is_trained
    assert not FLOW_KEYS & set(parts.history)
    parts.train_flow(2, **quiet)
    assert parts.is_trained
    assert same(state([whole.module]), state([parts.module]))


def test_same_seed_same_weights(simulated, build, fit):
    first, second = fit(build(simulated)), fit(build(simulated.copy()))
    assert same(state([first.module]), state([second.module]))
    scvi.settings.seed = 1
    CFMVC.setup_anndata(simulated, combination_delimiter="+")
    third = CFMVC(simulated, **first.init_params_["non_kwargs"])
    third.train(vae_max_epochs=2, flow_max_epochs=2, accelerator="cpu", enable_progress_bar=False)
    assert not same(state([first.module]), state([third.module]))


@pytest.mark.parametrize("source", ["control", "noise"])
@pytest.mark.parametrize("coupling", ["ot", "independent"])
def test_loss_falls_in_both_stages(simulated, build, fit, source, coupling):
    model = fit(build(simulated, flow_source=source, coupling=coupling), vae_max_epochs=15, flow_max_epochs=60)
    for key in ("elbo_train", "flow_loss_train"):
        losses = model.history[key].to_numpy(dtype=float).ravel()
        # the KL weight rises in the first epochs of stage 1, but the ELBO reported is unweighted
        assert losses[-5:].mean() < losses[:3].mean()


def test_epochs_by_default_depend_on_the_number_of_cells():
    assert epochs_for(900, 10**6, 128) == 10
    assert epochs_for(900, 100, 128) == 400
    assert epochs_for(900, 3000, 128) == round(900 / 23)


# ---- one split ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_split_for_both_stages(simulated, build, quiet):
    model = build(simulated)
    model.train_vae(1, train_size=0.7, validation_size=0.2, **quiet)
    split = [part.copy() for part in model.split_]
    assert [len(part) for part in split] == [210, 60, 30]
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(300))
    used = {}

    class Rows(Callback):
        def on_train_start(self, trainer, plan):
            used["train"], used["validation"] = trainer.datamodule.train_idx, trainer.datamodule.val_idx

    model.train_flow(1, callbacks=[Rows()], **quiet)
    model.train_vae(1, **quiet)
    for part, now, name in zip(split, model.split_, ("train", "validation", "test"), strict=True):
        np.testing.assert_array_equal(part, now)
        np.testing.assert_array_equal(part, getattr(model, f"{name}_indices"))
    np.testing.assert_array_equal(used["train"], split[0])
    np.testing.assert_array_equal(used["validation"], split[1])


@pytest.mark.slow
def test_split_is_seeded(simulated, build, quiet):
    splits = []
    for seed in (0, 0, 1):
        scvi.settings.seed = seed
        CFMVC.setup_anndata(simulated)
        model = CFMVC(simulated, n_hidden=4, n_hidden_flow=4)
        model.train_vae(1, **quiet)
        splits.append(model.split_[0])
    np.testing.assert_array_equal(splits[0], splits[1])
    assert not np.array_equal(splits[0], splits[2])


@pytest.mark.parametrize(("train", "validation"), [(0.0, None), (1.2, None), (0.8, 0.3), (0.5, -0.1)])
def test_impossible_splits_are_refused(simulated, build, train, validation):
    with pytest.raises(ValueError, match="must be fractions"):
        build(simulated).train(train_size=train, validation_size=validation)


# ---- modes and gradients ----------------------------------------------------------------------------------------


def test_modes_and_gradients_of_each_stage(simulated, build, fit):
    recorder = Recorder()
    model = fit(build(simulated, dropout=0.1), callbacks=[recorder])
    assert recorder.seen["VAETrainingPlan train"] == {("vae", True, True), ("flow", False, False)}
    assert recorder.seen["FlowTrainingPlan train"] == {("vae", False, False), ("flow", True, True)}
    assert recorder.seen["VAETrainingPlan validate"] == {("vae", False, True), ("flow", False, False)}
    assert recorder.seen["FlowTrainingPlan validate"] == {("vae", False, False), ("flow", False, True)}
    assert recorder.wide_gradients == {"VAETrainingPlan": {"vae"}, "FlowTrainingPlan": {"flow"}}
    assert not any(module.training for module in model.module.modules())
    assert all(p.requires_grad for p in model.module.parameters())


def test_stages_cover_all_parameters_once(trained):
    owners = [p for part in trained.module.vae_parts + trained.module.flow_parts for p in part.parameters()]
    assert len({id(p) for p in owners}) == len(owners)
    assert {id(p) for p in owners} == {id(p) for p in trained.module.parameters()}


@pytest.mark.slow
def test_stage_1_leaves_the_flow_alone_and_stage_2_the_vae(simulated, build, quiet):
    model = build(simulated)
    vae, flow = state(model.module.vae_parts), state(model.module.flow_parts)
    model.train_vae(2, **quiet)
    trained_vae = state(model.module.vae_parts)
    latent = model.get_latent_representation()
    assert same(flow, state(model.module.flow_parts)) and not same(vae, trained_vae)
    model.train_flow(2, **quiet)
    model.train_flow(1, **quiet)
    assert same(trained_vae, state(model.module.vae_parts)) and not same(flow, state(model.module.flow_parts))
    np.testing.assert_array_equal(latent, model.get_latent_representation())


@pytest.mark.parametrize("name", ["trained", "trained_noise"])
def test_alpha_of_control_is_zero_after_training(request, name):
    alpha = request.getfixturevalue(name).get_effect_coefficients()
    assert (alpha.loc["control"].to_numpy() == 0.0).all()
    assert (alpha.drop("control").abs().max(axis=1) > 0).all()


def test_kl_warm_up_and_gradient_clipping(simulated, build, fit):
    recorder = Recorder()
    fit(build(simulated), vae_max_epochs=4, vae_plan_kwargs={"n_epochs_kl_warmup": 2}, callbacks=[recorder])
    assert recorder.kl_weights[0] == 0.0 and recorder.kl_weights[-1] == 1.0
    assert recorder.kl_weights == sorted(recorder.kl_weights)
    assert len(recorder.clipping) == 2 and all(value > 0 for value in recorder.clipping)
    again = Recorder()
    fit(build(simulated), gradient_clip_val=3.0, callbacks=[again])
    assert again.clipping == [3.0, 3.0]


# ---- early stopping ---------------------------------------------------------------------------------------------


def test_early_stopping_on_each_stages_own_loss(simulated, build, fit):
    recorder = Recorder()
    model = fit(
        build(simulated),
        vae_max_epochs=30,
        flow_max_epochs=30,
        early_stopping=True,
        early_stopping_patience=2,
        early_stopping_min_delta=1e9,
        callbacks=[recorder],
    )
    assert recorder.monitors == {
        "VAETrainingPlan": ["elbo_validation"],
        "FlowTrainingPlan": ["flow_loss_validation"],
    }
    assert len(model.history["elbo_validation"]) == len(model.history["flow_loss_validation"]) == 3


def test_no_early_stopping_by_default(simulated, build, fit):
    recorder = Recorder()
    fit(build(simulated), callbacks=[recorder])
    assert recorder.monitors == {"VAETrainingPlan": [], "FlowTrainingPlan": []}


def test_early_stopping_needs_validation_cells(simulated, build, fit, quiet):
    model = build(simulated)
    with pytest.raises(ValueError, match=r"early_stopping.*validation cells.*train_size"):
        fit(model, early_stopping=True, train_size=1.0)
    fit(model, train_size=1.0)
    assert "elbo_validation" not in model.history and "flow_loss_validation" not in model.history
    with pytest.raises(ValueError, match="validation cells"):
        model.train_flow(1, early_stopping=True, **quiet)
    with pytest.raises(ValueError, match="validation cells"):
        model.train_vae(1, early_stopping=True, **quiet)
    assert model.is_trained  # nothing was touched
    assert np.isfinite(model.predict_perturbation(perturbation="P1").X).all()


# ---- fields and options -------------------------------------------------------------------------------------------


def donors_and_age(adata):
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 3, "a", "b")
    adata.obs["age"] = np.linspace(-1, 1, adata.n_obs)


FIELDS = {
    "covariates": {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]},
    "no spatial": {"spatial_key": None},
    "no batch, no labels": {"batch_key": None, "labels_key": None},
    "size factor": {"size_factor_key": "library_size"},
    "embedding": {"perturbation_embedding_key": "perturbation_embedding"},
    "dosage": {"dosage_key": "dosage"},
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_trains_and_predicts(simulate, build, fit, name):
    adata = simulate(doses=(0.3, 1.0)) if name == "dosage" else simulate()
    donors_and_age(adata)
    model = fit(build(adata, {"combination_delimiter": "+"} | FIELDS[name]), vae_max_epochs=1, flow_max_epochs=1)
    assert np.isfinite(model.history["flow_loss_train"].to_numpy(dtype=float)).all()
    dose = 0.5 if name == "dosage" else None
    predicted = model.predict_perturbation(perturbation=["P1", "P1+P3"], dosage=dose)
    assert predicted.n_obs == 2 * (adata.obs["perturbation"] == "control").sum()
    assert np.isfinite(predicted.X).all()


@pytest.mark.parametrize(
    "options",
    [
        {"labels_in_effect": True},
        {"labels_in_context": True},
        {"energy_weight": 0.1},
        {"n_layers_decoder": 0},
        {"dropout": 0.2},
        {"n_latent": 90},
    ],
)
def test_module_options_train(simulated, build, fit, options):
    """Every option makes another model, whose predictions move the cells and leave control alone."""
    plain, model = (
        fit(build(adata, **kwargs), vae_max_epochs=1, flow_max_epochs=1)
        for adata, kwargs in ((simulated.copy(), {}), (simulated, options))
    )
    predicted = model.predict_perturbation(perturbation=["P1", "control"]).X
    n = len(predicted) // 2
    assert np.isfinite(predicted).all() and not np.array_equal(predicted[:n], predicted[n:])
    assert not np.array_equal(predicted, plain.predict_perturbation(perturbation=["P1", "control"]).X)
    own = model.adata[(model.adata.obs["perturbation"] == "control").to_numpy()].X.toarray()
    np.testing.assert_array_equal(predicted[n:], own)


def test_bf16_mixed_precision(simulated, build, fit):
    model = fit(build(simulated), vae_max_epochs=1, flow_max_epochs=1, precision="bf16-mixed")
    assert all(p.dtype == torch.float32 for p in model.module.parameters())
    exact = fit(build(simulated.copy()), vae_max_epochs=1, flow_max_epochs=1)
    found, expected = (m.predict_perturbation(perturbation="P1", return_type="lognorm").X for m in (model, exact))
    assert not np.array_equal(found, expected)
    assert np.abs(found - expected).mean() < 0.1 * expected.mean()


def test_odd_cells_and_small_batches(simulated, build, fit):
    counts = simulated.X.toarray()
    counts[:4] = 0.0
    counts[:3, 0] = [1, 5, 100_000]  # the fourth cell and the last gene have no count at all
    counts[:, -1] = 0.0
    simulated.X = counts
    model = fit(build(simulated), batch_size=7, flow_batch_size=5, vae_max_epochs=1, flow_max_epochs=1)
    for return_type in ("mean", "lognorm", "latent"):
        result = model.predict_perturbation(perturbation="P1", indices=[0, 1, 2, 3], return_type=return_type)
        assert np.isfinite(result.X).all()
    control = model.predict_perturbation(perturbation="control", indices=[0, 1, 2, 3])
    np.testing.assert_array_equal(control.X, counts[:4])
    assert model.predict_perturbation(perturbation="P1", indices=[0, 3], return_type="counts").n_obs == 2


def test_few_cells(simulate, build, fit):
    model = fit(build(simulate()[:20].copy()), vae_max_epochs=1, flow_max_epochs=1)
    predicted = model.predict_perturbation()
    assert np.isfinite(predicted.X).all() and set(predicted.obs["perturbation"]) >= {"P1", "P2", "P3"}


@pytest.mark.slow
def test_learning_rate_options_of_scvi_tools(simulated, build, quiet):
    model = build(simulated)
    model.train_vae(2, plan_kwargs={"reduce_lr_on_plateau": True, "lr_patience": 1}, **quiet)
    rates = [name for name in model.history if name.startswith("lr-Adam")]
    assert len(rates) == 2 and all(len(model.history[name]) == 2 for name in rates)  # the dispersions have their own


@pytest.mark.slow
def test_best_checkpoint_of_stage_1(simulated, build, quiet, tmp_path):
    save = SaveCheckpoint(dirpath=str(tmp_path / "best"), monitor="elbo_validation", load_best_on_end=True)
    model = build(simulated)
    model.train_vae(3, callbacks=[save], enable_checkpointing=True, **quiet)
    assert model.is_vae_trained_ and len(list((tmp_path / "best").iterdir())) == 1
    assert model.get_latent_representation().shape == (300, 6)
    model.train_flow(1, **quiet)
    assert model.is_trained
