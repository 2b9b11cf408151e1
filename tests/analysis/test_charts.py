"""Charts: round ticks, gaps, fronts, and SVG that is well formed whatever it is given."""

import xml.etree.ElementTree

import numpy as np
import pytest

from crnas_jax.analysis import charts, plots
from crnas_jax.analysis.charts import Axis, Chart, Series


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (47, 52, [47, 48, 49, 50, 51, 52]),
        (-0.013, 0.02, [-0.01, 0, 0.01, 0.02]),
        (1e9, 3.1e9, [1e9, 1.5e9, 2e9, 2.5e9, 3e9]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert Axis(low, high, 0, 100).ticks() == pytest.approx(ticks)


def test_axes_hold_values_that_are_equal_missing_or_none():
    for values in ([3.0, 3.0], [np.nan, 2.0], [], [0.0]):
        axis = Axis.around(values, (), None, 0, 100)
        assert axis.low < axis.high
        real = [value for value in values if value == value]
        assert all(0 < place < 100 for place in axis.place(real))


def test_a_line_is_broken_where_a_value_is_missing():
    series = Series("", [1, 2, 3, 4], [1.0, np.nan, 2.0, 3.0], is_line=True)
    drawn = str(charts.svg(Chart("t", "x", "y", (series,))))
    (path,) = [part for part in drawn.split("<path") if 'class="line"' in part]
    assert path.count("M") == 2
    assert path.count("L") == 1


def test_drawings_are_well_formed_and_escaped():
    evil = "<script>\"'&</script>\x00"
    series = (
        Series(evil, [1, 2], [1, 2], low=[0, 1], high=[2, 3], keys=("a", "b"), labels=(evil, "b")),
        Series(evil * 100, [1, 2], [2, 1], 3, is_line=True, keys=(evil,)),
    )
    chart = Chart(evil, evil, evil, series, ((evil, 1.5),), (0, 3), (0, 3))
    drawn = str(charts.svg(chart, plots.STYLE.read_text()))
    root = xml.etree.ElementTree.fromstring(drawn)
    assert not [part for part in root.iter() if part.tag.endswith("script")]


def test_the_pareto_front_rises_with_cost():
    costs, scores = [3, 1, 2, 2, 4, 5], [5, 2, 1, 4, 5, 7]
    front = plots.pareto_front(costs, scores)
    assert [(costs[row], scores[row]) for row in front] == [(1, 2), (2, 4), (3, 5), (5, 7)]


def test_curves_are_averaged_to_few_points():
    rows = [{"step": step, "loss": 1.0 + step % 2} for step in range(1000)]
    chart = plots.training_curves("t", {"a": rows, "b": rows[:3]}, {"b": "network"})
    first, second = chart.series
    assert len(first.x) <= 150
    np.testing.assert_allclose(first.y, 1.5, atol=0.1)
    assert (len(second.x), second.keys) == (3, ("network",))
    assert first.x == sorted(first.x)


def test_a_study_of_strategies_has_a_point_for_each_seed():
    drawn = {"image_passes": 5, "AP": 0.4}
    rows = [
        {"racing": {"image_passes": 10 + seed, "AP": 0.5}, "random": drawn} for seed in range(3)
    ]
    chart = plots.strategies(rows)
    assert [series.name for series in chart.legend] == ["racing", "random"]
    assert chart.series[0].x == [10, 11, 12]
    assert chart.series[0].y == [50, 50, 50]
