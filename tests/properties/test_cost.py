"""CostModel: the prior's scale, what is learned, how both blend, and what is stored."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from streams.core.cost import MAX_SHAPES, CostModel, Learned, Prior, Shape

PRIOR = Prior(fixed_s=0.01, megapixel_s=0.05, token_s=1e-5)
SMALL, LARGE = Shape(17, 64, 64), Shape(81, 480, 832)

A_SHAPE = st.builds(
    Shape, st.integers(1, 257), st.integers(1, 80).map((16).__mul__),
    st.integers(1, 80).map((16).__mul__),
)  # fmt: skip
UNITS = st.integers(1, 200)
SECONDS = st.floats(1e-4, 1e4)
A_MEASUREMENT = st.tuples(st.sampled_from(["v1", "v2"]), A_SHAPE, UNITS, SECONDS)


@given(st.lists(A_MEASUREMENT, max_size=20), A_SHAPE, UNITS)
@settings(max_examples=100, deadline=None)
def test_every_estimate_is_positive_and_finite_and_grows_with_the_units(
    measured: list[tuple[str, Shape, int, float]], shape: Shape, num_units: int
) -> None:
    costs = CostModel(PRIOR)
    for each in measured:
        costs.learn(*each)
    one_s = costs.estimate_s("v1", shape, 1)
    assert 0 < one_s < float("inf")
    assert costs.estimate_s("v1", shape, num_units) == pytest.approx(one_s * num_units)


@given(A_SHAPE, UNITS)
def test_without_a_measurement_the_prior_speaks(shape: Shape, num_units: int) -> None:
    estimate_s = CostModel(PRIOR).estimate_s("v1", shape, num_units)
    assert estimate_s == pytest.approx(PRIOR.unit_s(shape) * num_units)


@given(A_SHAPE, A_SHAPE, st.floats(0.01, 100.0))
@settings(max_examples=80, deadline=None)
def test_one_measurement_sets_the_scale_of_every_shape(
    measured: Shape, asked: Shape, factor: float
) -> None:
    costs = CostModel(PRIOR)
    costs.learn("v1", measured, 10, 10 * factor * PRIOR.unit_s(measured))
    for model_version in ("v1", "another"):
        expected_s = factor * PRIOR.unit_s(asked)
        assert costs.estimate_s(model_version, asked, 1) == pytest.approx(expected_s)


@given(st.floats(0.01, 100.0), st.floats(0.01, 100.0))
def test_a_shape_costs_what_it_takes_once_it_was_measured_often(
    own_s: float, other_factor: float
) -> None:
    costs = CostModel(PRIOR)
    costs.learn("v1", LARGE, 1, other_factor * PRIOR.unit_s(LARGE))
    for _ in range(60):
        costs.learn("v1", SMALL, 4, 4 * own_s)
    assert costs.estimate_s("v1", SMALL, 1) == pytest.approx(own_s, rel=0.02)
    assert costs.num_measured("v1", SMALL) > 9


def test_one_odd_job_does_not_set_the_price() -> None:
    costs = CostModel(PRIOR)
    for _ in range(20):
        costs.learn("v1", SMALL, 1, 1.0)
    costs.learn("v1", SMALL, 1, 100.0)
    assert costs.estimate_s("v1", SMALL, 1) < 15


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e9])
def test_what_no_clock_can_have_measured_teaches_nothing(seconds: float) -> None:
    costs = CostModel(PRIOR)
    costs.learn("v1", SMALL, 2, seconds)
    costs.learn("v1", SMALL, 0, 1.0)
    assert costs.learned() == ()


@given(st.lists(A_MEASUREMENT, max_size=20), st.lists(A_SHAPE, max_size=4))
@settings(max_examples=60, deadline=None)
def test_what_was_stored_estimates_alike(
    measured: list[tuple[str, Shape, int, float]], asked: list[Shape]
) -> None:
    costs, restored = CostModel(PRIOR), CostModel(PRIOR)
    for each in measured:
        costs.learn(*each)
    restored.restore(costs.learned())
    for shape in [*asked, *(each[1] for each in measured)]:
        for model_version in {each[0] for each in measured}:
            expected_s = costs.estimate_s(model_version, shape, 1)
            assert restored.estimate_s(model_version, shape, 1) == pytest.approx(expected_s)
    assert restored.learned() == costs.learned()


@pytest.mark.parametrize(
    ("mean", "weight"), [(0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (1.0, 0.0), (1.0, 11.0)]
)
def test_figures_that_nobody_learned_are_refused(mean: float, weight: float) -> None:
    with pytest.raises(ValueError, match="no such figures"):
        CostModel(PRIOR).restore([Learned("v1", SMALL, mean, weight)])


def test_of_too_many_shapes_those_last_measured_are_kept() -> None:
    costs = CostModel(PRIOR)
    for num_frames in range(1, MAX_SHAPES + 20):
        costs.learn("v1", Shape(num_frames, 64, 64), 1, 1.0)
    assert len(costs.learned()) == MAX_SHAPES + 1
    assert costs.num_measured("v1", Shape(1, 64, 64)) == 0
    assert costs.num_measured("v1", Shape(MAX_SHAPES + 19, 64, 64)) == 1
