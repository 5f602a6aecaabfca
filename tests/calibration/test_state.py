"""What a calibration has learned: every part survives saving, with vectors and without."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cfmvc_scvi.calibration import Calibration, CalibrationState
from cfmvc_scvi.io.codec import to_plain
from cfmvc_scvi.registration.vocabulary import PerturbationVocabulary


@pytest.fixture
def with_vectors(world) -> Calibration:
    """Calibration of the world whose perturbations have vectors, and C a vector without cells."""
    vectors = {"A": np.array([1.0, 0.2]), "B": np.array([0.1, 1.0]), "C": np.array([0.9, 0.4])}
    vocabulary = PerturbationVocabulary(["control"], ["A", "B"], "+", embedding=vectors)
    return Calibration.fit(world.cache, world.rows, world.populations, world.module, vocabulary)


def flat(value: object) -> dict[str, np.ndarray]:
    """All arrays in saved containers, by their place."""
    return to_plain(value, "state")[1]


def test_every_field_is_saved_and_read_back(with_vectors):
    saved = with_vectors.state.to_saved()
    assert set(saved) == {field.name for field in dataclasses.fields(CalibrationState)}
    again = CalibrationState.from_saved(saved)
    one, other = flat(saved), flat(again.to_saved())
    assert one.keys() == other.keys() and len(one) > 10
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name])


def test_vectors_have_a_reach_and_unit_vectors_have_none(with_vectors, world):
    assert with_vectors.state.reach is not None and with_vectors.state.composition is not None
    plain = Calibration.fit(world.cache, world.rows, world.populations, world.module, world.vocabulary).state
    assert (
        plain.reach is None
        and plain.composition is None
        and CalibrationState.from_saved(plain.to_saved()).reach is None
    )


def test_only_what_was_not_measured_is_drawn_towards_no_change(with_vectors):
    parse = with_vectors.vocabulary.parse
    part = with_vectors.reach(parse("A+C"))
    assert part.shape == (2,) and part[0] == 1.0 and 0 < part[1] < 1.0
    np.testing.assert_array_equal(with_vectors.encode(parse("A")), with_vectors.vocabulary.encode([parse("A")])[0])
    alone = with_vectors.encode(parse("C"))
    np.testing.assert_allclose(alone, part[1] * with_vectors.vocabulary.encode([parse("C")])[0], rtol=1e-6)
    assert not with_vectors.encode(parse("control")).any() and with_vectors.reach(parse("control")).shape == (0,)
