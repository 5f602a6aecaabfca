"""The graph that imports do not show: what a part of the model class reads of another."""

from __future__ import annotations

import pytest

from cfmvc_scvi import CFMVC
from cfmvc_scvi._base import MADE_ANEW, STATE, ModelBase

PARTS = [kind for kind in CFMVC.__mro__ if kind.__module__.startswith("cfmvc_scvi.")]
MIXINS = [kind for kind in PARTS if kind not in (CFMVC, ModelBase)]


def test_every_attribute_is_declared(house):
    assert house.parts_of(CFMVC) == PARTS and len(MIXINS) > 5
    assert house.undeclared_reads(PARTS) == []


def test_a_missing_declaration_is_found(house):
    class Part(ModelBase):
        """A part that reads what it does not declare."""

        def method(self):
            return self.vocabulary, self.not_there, self.not_there

    assert house.undeclared_reads([Part]) == ["Part.not_there"] * 2


def test_parts_that_need_each_other_are_found(house):
    class One:
        def first(self):
            return self.second()

    class Other:
        def second(self):
            return self.first()

    class Both(One, Other):
        def third(self):
            return self.first()

    needs = house.needs_of([Both, One, Other])
    assert needs == {"Both": {"One", "Other"}, "One": {"Other"}, "Other": {"One"}}
    assert house.circles(needs) == [{"One", "Other"}]


def test_no_parts_need_each_other_in_a_circle(house):
    needs = house.needs_of(PARTS)
    assert all("ModelBase" in needs[kind.__name__] for kind in MIXINS)
    assert house.circles(needs) == []


@pytest.mark.parametrize("kind", MIXINS, ids=lambda k: k.__name__)
def test_mixins_say_what_they_rely_on(kind):
    assert "Relies on" in kind.__doc__


def test_state_is_one_list():
    assert set(STATE) <= set(ModelBase.__annotations__)
    assert MADE_ANEW and all(set(names) <= {*STATE, "is_trained_"} for names in MADE_ANEW.values())
