"""Which tests are slow: those that train, by a fixture or by themselves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest


def test_a_test_that_is_not_marked_cannot_train(simulated, build, quiet):
    with pytest.raises(pytest.fail.Exception, match=r"must be marked: @pytest\.mark\.slow"):
        build(simulated).train_vae(1, **quiet)


@pytest.mark.slow
def test_a_test_that_is_marked_can(simulated, build, quiet):
    model = build(simulated)
    model.train_vae(1, **quiet)
    assert model.is_vae_trained_


class Item:
    """As much of a collected test as the hook that marks looks at."""

    def __init__(self, *fixtures: str, **parameters: str) -> None:
        self.fixturenames, self.marks = list(fixtures), []
        if parameters:
            self.callspec = SimpleNamespace(params=parameters)

    def add_marker(self, mark) -> None:
        self.marks.append(mark.name)


@pytest.mark.parametrize(
    ("item", "marks"),
    [
        (Item("simulated", "build", "fit"), ["slow"]),
        (Item("cells", "trained"), ["slow"]),  # pytest names the fixtures of fixtures too
        (Item("request", source="trained_noise"), ["slow"]),
        (Item("simulated", "build", source="control"), []),
    ],
)
def test_fixtures_that_train_make_tests_slow(request, item, marks):
    [conftest] = {p for p in request.config.pluginmanager.get_plugins() if hasattr(p, "TRAINING_FIXTURES")}
    conftest.pytest_collection_modifyitems([item])
    assert item.marks == marks


def test_fixtures_of_fixtures_are_named(request):
    """This very run: whatever asks for what a trained model predicted has the mark."""
    items = [item for item in request.session.items if "predicted" in item.fixturenames]
    assert all("trained" in item.fixturenames and item.get_closest_marker("slow") for item in items)
