"""Which tests are slow: those that train, by a fixture or by themselves."""

from __future__ import annotations

import pytest

from cfmvc_scvi.model import training


def test_a_test_that_is_not_marked_cannot_train(simulated, build, quiet):
    with pytest.raises(pytest.fail.Exception, match=r"must be marked: @pytest\.mark\.slow"):
        build(simulated).train_vae(1, **quiet)


@pytest.mark.slow
def test_a_test_that_is_marked_can(simulated, build, quiet):
    model = build(simulated)
    model.train_vae(1, **quiet)
    assert model.is_vae_trained_


def test_a_fixture_that_trains_makes_a_test_slow(request):
    marked = {item for item in request.session.items if item.get_closest_marker("slow")}
    by_fixture = {item for item in request.session.items if {"fit", "trained"} & set(item.fixturenames)}
    assert by_fixture <= marked


@pytest.mark.parametrize("fixture", ["fit", "trained", "predicted"])
def test_mark_is_set_before_tests_are_chosen(pytestconfig, fixture):
    """The fixtures that train are known by name to the hook that marks."""
    conftest = next(p for p in pytestconfig.pluginmanager.get_plugins() if hasattr(p, "refuse_hidden_training"))

    class Item:
        fixturenames = [fixture, *(["trained"] if fixture == "predicted" else [])]
        marks = ()

        def add_marker(self, mark):
            self.marks = (*self.marks, mark.name)

    item = Item()
    conftest.pytest_collection_modifyitems([item])
    assert item.marks == ("slow",)
    assert training.run_stage.__wrapped__ is not training.run_stage
