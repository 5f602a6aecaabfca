"""Pairs of stage 2: who is paired with whom, what is drawn anew, what is fixed."""

import numpy as np
import pytest
import torch

from cfmvc_scvi._types import CellSplit, FlowBatch, FlowContext
from cfmvc_scvi.cells.pairs import LatentData, LatentDataModule, PairLoader
from cfmvc_scvi.flow import IndependentCoupling, OTCoupling
from cfmvc_scvi.registration.members import Members

N_LABELS, D = 3, 2
#: Cells per condition (rows) and cell type (columns); type 2 has no control.
COUNTS = np.array([[40, 30, 0], [25, 10, 15], [0, 50, 7]])


def make(scale: float = 0.0) -> LatentData:
    """Latents that tell who a cell is: the first coordinate is its row, the second its cell type."""
    condition, labels = (v.ravel() for v in np.meshgrid(np.arange(3), np.arange(N_LABELS), indexing="ij"))
    condition, labels = condition.repeat(COUNTS.ravel()), labels.repeat(COUNTS.ravel())
    order = np.random.default_rng(0).permutation(len(labels))
    condition, labels = condition[order], labels[order]
    mean = torch.tensor(np.c_[np.arange(len(labels)), labels], dtype=torch.float32)
    p = Members(np.array([[-1], [0], [1]]), np.array([[0.0], [1.0], [2.0]], dtype=np.float32), None, 2)
    return LatentData(
        mean,
        torch.full_like(mean, scale),
        FlowContext(*torch.tensor(np.stack([np.zeros_like(labels), labels]))),
        condition,
        p,
    )


def loader(data: LatentData, rows: np.ndarray | None = None, source: str = "control", **kwargs) -> PairLoader:
    rows = np.arange(len(data.mean)) if rows is None else rows
    coupling = kwargs.pop("coupling", OTCoupling())
    return PairLoader(data, rows, coupling, source, kwargs.pop("batch_size", 32), **kwargs)


def whole_pass(pairs: PairLoader) -> FlowBatch:
    """One pass as one batch."""
    batches = list(pairs)
    codes = (torch.cat(column) for column in zip(*(batch.context.codes for batch in batches), strict=True))
    z0, z1, p = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("z0", "z1", "p"))
    return FlowBatch(z0, z1, FlowContext(*codes), p)


def rows_of(z: torch.Tensor) -> np.ndarray:
    return z[:, 0].round().long().numpy()


@pytest.mark.parametrize("coupling", [OTCoupling(), IndependentCoupling()], ids=["ot", "independent"])
def test_pairs_stay_within_the_cell_type(coupling):
    data = make()
    batch = whole_pass(loader(data, coupling=coupling))
    source, target = rows_of(batch.z0), rows_of(batch.z1)
    labels = data.context.labels.numpy()
    perturbed = data.condition[target] > 0
    assert (data.condition[source] == 0).all()
    own = perturbed & (labels[target] < 2)
    assert (labels[source][own] == labels[target][own]).all()
    orphans = perturbed & (labels[target] == 2)
    assert orphans.sum() == COUNTS[1:, 2].sum()
    assert set(labels[source][orphans]) <= {0, 1}


def test_controls_map_to_themselves():
    data = make(scale=0.3)
    batch = whole_pass(loader(data))
    control = (batch.p == 0).all(dim=-1)
    assert int(control.sum()) == COUNTS[0].sum()
    assert torch.equal(batch.z0[control], batch.z1[control])
    assert not (batch.z0[~control] == batch.z1[~control]).all(dim=-1).any()


def test_every_cell_is_a_target_once_with_its_own_condition_and_context():
    data = make()
    batch = whole_pass(loader(data))
    target = rows_of(batch.z1)
    np.testing.assert_array_equal(np.sort(target), np.arange(COUNTS.sum()))
    assert torch.equal(batch.p, torch.from_numpy(data.p.dense().sum(axis=1)[data.condition[target]]))
    assert torch.equal(batch.context.labels, data.context.labels[target])


def test_batches_mix_conditions_in_proportion():
    data = make()
    batches = list(loader(data, batch_size=60))
    share = COUNTS[0].sum() / COUNTS.sum()
    assert len(batches) == 3
    for batch in batches:
        assert float((batch.p == 0).all(dim=-1).float().mean()) == pytest.approx(share, abs=0.2)
        assert len(set(rows_of(batch.z1) // 60)) > 1


@pytest.mark.parametrize(("batch_size", "n_batches"), [(1, 177), (32, 6), (88, 3), (177, 1), (1000, 1)])
def test_batch_sizes(batch_size, n_batches):
    pairs = loader(make(), batch_size=batch_size)
    sizes = [len(batch) for batch in pairs]
    assert len(pairs) == len(sizes) == n_batches
    assert sum(sizes) == 177
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1  # no batch of a cell or two at the end


def test_a_pass_draws_and_pairs_anew():
    pairs = loader(make(scale=0.1), coupling=IndependentCoupling())
    first, second = whole_pass(pairs), whole_pass(pairs)
    assert not torch.equal(first.z1, second.z1)
    partner = [dict(zip(rows_of(b.z1).tolist(), rows_of(b.z0).tolist(), strict=True)) for b in (first, second)]
    perturbed = np.flatnonzero(make().condition)
    assert np.mean([partner[0][row] != partner[1][row] for row in perturbed]) > 0.5


def test_validation_pairs_are_fixed():
    pairs = loader(make(scale=0.5), fixed=True)
    first, second = whole_pass(pairs), whole_pass(pairs)
    assert torch.equal(first.z0, second.z0)
    assert torch.equal(first.z1, second.z1)


def test_seed_fixes_every_pass():
    first, again, other = (loader(make(scale=0.5), seed=seed) for seed in (1, 1, 2))
    for _ in range(2):
        a, b, c = whole_pass(first), whole_pass(again), whole_pass(other)
        assert torch.equal(a.z0, b.z0)
        assert torch.equal(a.z1, b.z1)
        assert not torch.equal(a.z1, c.z1)


def test_torch_and_numpy_random_states_are_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    whole_pass(loader(make(scale=0.5)))
    assert (torch.rand(1), np.random.rand()) == expected


def test_draws_have_the_posterior_mean_and_scale():
    data = make()
    data = LatentData(data.mean, data.mean.abs() * 0.01 + 0.5, data.context, data.condition, data.p)
    rows = np.full(20_000, 123)
    drawn = data.draw(rows, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(dim=0), data.mean[123], atol=0.06, rtol=0)
    torch.testing.assert_close(drawn.std(dim=0), data.scale[123], rtol=0.03, atol=0)


def test_noise_source_starts_every_cell_at_a_standard_normal():
    data = make()
    rows = np.tile(np.arange(len(data.mean)), 20)
    batch = whole_pass(loader(data, rows, source="noise", coupling=IndependentCoupling()))
    assert len(batch) == len(rows)
    assert batch.z0.mean().abs() < 0.06
    assert batch.z0.std() == pytest.approx(1.0, abs=0.05)
    control = (batch.p == 0).all(dim=-1)
    assert not (batch.z0[control] == batch.z1[control]).all(dim=-1).any()


def test_noise_is_coupled_optimally():
    """One control group: its pairs are monotone in the coordinate that varies."""
    data = make()
    controls = np.flatnonzero((data.condition == 0) & (data.context.labels.numpy() == 0))
    data.mean[:, 0] /= 100
    batch = whole_pass(loader(data, controls, source="noise"))
    cost = ((batch.z0 - batch.z1) ** 2).sum()
    shuffled = ((batch.z0.roll(1, 0) - batch.z1) ** 2).sum()
    assert cost < shuffled


def test_noise_source_needs_no_controls():
    data = make()
    perturbed = np.flatnonzero(data.condition)
    batch = whole_pass(loader(data, perturbed, source="noise"))
    np.testing.assert_array_equal(np.sort((batch.z1[:, 0]).round().numpy()), perturbed)


def test_control_source_without_controls_is_refused():
    data = make()
    perturbed = np.flatnonzero(data.condition)
    with pytest.raises(ValueError, match="None of the 107 cells can be paired"):
        loader(data, perturbed)


def test_validation_without_controls_borrows_those_of_training():
    data = make()
    rng = np.random.default_rng(0)
    validation = np.sort(rng.permutation(np.flatnonzero(data.condition))[:20])
    rest = np.setdiff1d(np.arange(len(data.mean)), validation)
    test, train = rest[::4], np.setdiff1d(rest, rest[::4])
    module = LatentDataModule(data, CellSplit(train, validation, test), OTCoupling(), "control", 16)
    batch = whole_pass(module.val_dataloader())
    labels, source, target = data.context.labels.numpy(), rows_of(batch.z0), rows_of(batch.z1)
    np.testing.assert_array_equal(np.sort(target), validation)
    assert set(source) <= set(train[data.condition[train] == 0])
    own = labels[target] < 2
    assert (labels[source][own] == labels[target][own]).all()


def test_data_module_keeps_the_split():
    data = make()
    rows = np.arange(len(data.mean))
    split = CellSplit(rows[::2], rows[1::4], rows[3::4])
    module = LatentDataModule(data, split, OTCoupling(), "control", 16)
    for pairs, part in ((module.train_dataloader(), split.train), (module.val_dataloader(), split.validation)):
        batch = whole_pass(pairs)
        np.testing.assert_array_equal(np.sort(rows_of(batch.z1)), part)
        assert set(rows_of(batch.z0)) <= set(part)
    first, second = whole_pass(module.val_dataloader()), whole_pass(module.val_dataloader())
    assert torch.equal(first.z0, second.z0)


def test_no_validation_cells_no_loader():
    data = make()
    rows = np.arange(len(data.mean))
    split = CellSplit(rows, rows[:0], rows[:0])
    assert LatentDataModule(data, split, OTCoupling(), "control", 16).val_dataloader() == []


def test_a_pass_is_a_function_of_the_seed_and_its_number():
    """What a resumed run needs: ``first_epoch`` skips the passes that are done."""
    pairs = loader(make(scale=0.5), seed=3)
    passes = [whole_pass(pairs) for _ in range(3)]
    np.random.seed(5)
    resumed = loader(make(scale=0.5), seed=3)
    resumed.first_epoch = 2
    again = whole_pass(resumed)
    assert torch.equal(again.z0, passes[2].z0)
    assert torch.equal(again.z1, passes[2].z1)
    assert not torch.equal(again.z1, passes[1].z1)
    fixed, later = loader(make(scale=0.5), fixed=True), loader(make(scale=0.5), fixed=True)
    later.first_epoch = 2
    assert torch.equal(whole_pass(fixed).z0, whole_pass(later).z0)


def test_batches_name_the_condition_of_every_target():
    data = make()
    batches = list(loader(data))
    assert sum(len(np.unique(batch.condition)) for batch in batches) > 2
    for batch in batches:
        np.testing.assert_array_equal(batch.condition.numpy(), data.condition[rows_of(batch.z1)])


@pytest.mark.parametrize("n", [2, 5])
def test_processes_share_the_pairs_of_every_batch(n):
    data = make(scale=1.0)
    whole = list(loader(data))
    parts = [list(loader(data, shard=(index, n))) for index in range(n)]
    for batch, *shared in zip(whole, *parts, strict=True):
        for name in ("z0", "z1", "p", "condition"):
            assert torch.equal(torch.cat([getattr(part, name) for part in shared]), getattr(batch, name))
        assert batch.part is None and [part.part.n for part in shared] == [len(batch)] * n
