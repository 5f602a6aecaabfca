"""Steps without the work around them: the hooks that are left out change nothing."""

from __future__ import annotations

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import SimpleProfiler

from cfmvc_scvi import CFMVC, data
from cfmvc_scvi.train.steps import NoProfiler


class Hooks(Callback):
    """Remembers the name of the hook that Lightning says is running, and the trainer's profiler."""

    def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx) -> None:
        self.name, self.profiler = plan._current_fx_name, trainer.profiler
        self.stored = "_current_fx_name" in vars(plan)


def trained(**kwargs) -> tuple[CFMVC, Hooks]:
    adata = data.simulate_perturbation(n_cells=80, n_genes=20, n_cell_types=2, n_perturbations=2, n_pairs=0)
    CFMVC.setup_anndata(adata, combination_delimiter="+")
    model, hooks = CFMVC(adata, n_latent=3, n_latent_technical=2, n_hidden=8), Hooks()
    model.train_vae(max_epochs=1, accelerator="cpu", enable_progress_bar=False, callbacks=[hooks], **kwargs)
    return model, hooks


def test_the_running_hook_is_known_and_nothing_is_profiled():
    model, hooks = trained()
    assert hooks.name == "on_train_batch_end" and hooks.stored
    assert isinstance(hooks.profiler, NoProfiler)
    with hooks.profiler.profile("one"), hooks.profiler.profile("in the other"):
        pass
    assert {"elbo_train", "reconstruction_loss_train"} <= set(model.history)


def test_a_profiler_that_is_asked_for_is_used():
    profiler = SimpleProfiler()
    _, hooks = trained(profiler=profiler)
    assert hooks.profiler is profiler
    assert any("optimizer_step" in action for action in profiler.recorded_durations)
