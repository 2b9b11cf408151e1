"""The statistics of a ranking study, its figures and its script."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from helpers import run_commands

from crnas_jax.analysis import plots, ranking
from crnas_jax.errors import UserError

agreement = functools.partial(ranking.agreement, num_samples=200)


def test_agreement_of_known_columns():
    results = np.arange(10) / 10
    same = agreement(results, results)
    assert (same["tau"], same["spearman"]) == pytest.approx((1, 1))
    assert same["regret_top1"] == 0
    opposite = agreement(-results, np.stack([results, results], 1))
    assert (opposite["tau"], opposite["spearman"]) == pytest.approx((-1, -1))
    assert opposite["regret_top1"] == pytest.approx(0.9)
    swapped = agreement([1, 2, 4, 3], [1, 2, 3, 4])
    assert swapped["tau"] == pytest.approx(2 / 3)  # five of six pairs are in order
    assert swapped["spearman"] == pytest.approx(0.8)
    low, high = swapped["tau_ci95"]
    assert low <= 2 / 3 <= high
    assert np.isnan(agreement([1, 1, 1], [1, 2, 3])["tau"])
    with pytest.raises(ValueError, match="three"):
        agreement([1, 2], [1, 2])


def test_noise_lowers_agreement():
    rng = np.random.default_rng(0)
    results = rng.normal(size=40)
    little, much = (
        agreement(results + scale * rng.normal(size=40), results)["tau"] for scale in (0.1, 3)
    )
    assert little > 0.8 > much


def test_spread_separates_seeds_from_rows():
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 0.03, (300, 1))
    spread = ranking.spread(rows + rng.normal(0, 0.01, (300, 3)))
    assert spread["seed_std"] == pytest.approx(0.01, rel=0.1)
    assert spread["row_std"] == pytest.approx(0.03, rel=0.1)
    assert spread["reliability"] == pytest.approx(9 / (9 + 1 / 3), abs=0.03)
    assert np.isnan(ranking.spread([[0.1], [0.2]])["seed_std"])


def test_repeats_report_the_smallest_tau_of_two_scorings():
    assert ranking.repeats([[1, 1], [2, 2], [3, 3]]) == pytest.approx({"tau": 1, "std": 0})
    assert ranking.repeats([[1, 3], [2, 2], [3, 1]])["tau"] == pytest.approx(-1)
    assert np.isnan(ranking.repeats([[1], [2]])["tau"])


def test_names_in_a_figure_are_not_parsed_as_formulas(tmp_path):
    names = ["$\\frac", "b"]
    chart = plots.scatter([1, 2], [1, 2], "$x", "a_b$^", names, "100 $")
    named = dataclasses.replace(chart.series[0], name="$^")
    chart = dataclasses.replace(chart, series=(named,), marks=(("$_", 1.5),))
    for name in ("a.png", "a.svg"):
        plots.save(chart, tmp_path / name)
    for name in ("missing/a.png", "missing/a.svg", "a.abc"):
        with pytest.raises(UserError, match="can be written"):
            plots.save(chart, tmp_path / name)


def test_rounded_means_of_equal_seeds_can_be_drawn(tmp_path):
    equal = [[0.1] * 3, [0.7] * 3]
    plots.save(plots.scatter([1, 2], equal, "x", "y"), tmp_path / "a.png")


def test_columns_are_read_and_bad_tables_are_refused(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("name,top1,AP\na,70,30\nb,71,x\n")
    assert ranking.read_names(table, "name") == ["a", "b"]
    with pytest.raises(UserError, match="no column 'AR'"):
        ranking.read_table(table, ["AR"])
    with pytest.raises(UserError, match="there are 2"):
        ranking.read_table(table, ["top1"])
    table.write_text("name,top1,AP\na,70,30\nb,71,x\nc,72,32\n")
    with pytest.raises(UserError, match="line 3: AP is 'x'"):
        ranking.read_table(table, ["top1", "AP"])
    assert ranking.read_table(table, ["top1"]).tolist() == [[70], [71], [72]]
    table.write_text("name,top1\na,70\nb,nan\nc,72\n")
    with pytest.raises(UserError, match="line 3: top1 is 'nan'"):
        ranking.read_table(table, ["top1"])
    with pytest.raises(UserError, match="No such file"):
        ranking.read_table(tmp_path / "b.csv", ["AP"])
    table.write_text("top1,AP\n70,30\n71,31\n72,32\n", encoding="utf-8-sig")  # as Excel writes it
    assert ranking.read_table(table, ["top1"]).tolist() == [[70], [71], [72]]
    table.write_text("AP,top1,AP\n1,70,30\n2,71,31\n3,72,32\n")
    with pytest.raises(UserError, match="two columns 'AP'"):
        ranking.read_table(table, ["AP"])


def test_the_script_compares_columns_and_draws(tmp_path):
    table, plot = tmp_path / "a.csv", tmp_path / "a.png"
    table.write_text("name,top1,a,b\nx,70,30,31\ny,71,32,33\nz,72,35,32\n")
    command = ["scripts/compare_scores.py", f"--table={table}", "--x=top1"]
    good, without_column, without_folder = run_commands(
        [
            [*command, "--y=a,b", "--names=name", f"--plot={plot}", "--json"],
            [*command, "--y="],
            [*command, "--y=a", f"--plot={tmp_path}/missing/a.png"],
        ]
    )
    assert good["status"] == 0, good["stderr"]
    printed = json.loads(good["stdout"])
    assert printed["tau"] == pytest.approx(1)
    assert printed["rows"] == 3
    assert plot.stat().st_size > 5000
    for outcome in (without_column, without_folder):
        assert outcome["status"] == 2
        assert outcome["stdout"] == ""
        assert outcome["stderr"].count("\n") == 1
