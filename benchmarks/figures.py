"""The figures of README and `docs/results.md`, drawn from recorded results: SVG and PNG.

python benchmarks/figures.py --output=docs/figures
"""

import argparse
import json
import pathlib

from crnas_jax.analysis import heat_maps, plots
from crnas_jax.analysis.charts import Chart, Series
from crnas_jax.analysis.html import search
from crnas_jax.analysis.record import Record
from crnas_jax.settings.fields import config_of

RESULTS = pathlib.Path(__file__).parent / "results"
RUN = pathlib.Path(__file__).resolve().parents[1] / "tests" / "analysis" / "bccd_run"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("docs/figures"))
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    charts = {
        "bccd_scores": bccd_scores(),
        "bccd_runs": bccd_runs(_read("bccd_runs")),
        "ranking_paper": ranking("branch, uniform, all depths, seed 0", "the paper's supernet"),
        "ranking_defaults": ranking("prefix, balanced, reachable, seed 0", "the defaults"),
        "decision": decision(_read("decision")),
    }
    for name, chart in charts.items():
        for suffix in (".svg", ".png"):
            plots.save(chart, output / f"{name}{suffix}")
    for name, found in _read("receptive_fields")["figures"].items():
        for suffix in (".svg", ".png"):
            heat_maps.save(found, output / f"receptive_fields_{name}{suffix}")


def _read(name):
    return json.loads((RESULTS / f"{name}_cpu.json").read_text())


def bccd_scores() -> Chart:
    """Draw every allocation that the search on blood cells scored, over its parameters."""
    record = Record.open(RUN)
    costs = search.known_costs(record, config_of(record.config))
    return search.score_charts(record, costs)["parameters, M"]


def bccd_runs(result) -> Chart:
    """Draw the found network minus the baseline in the runs on blood cells."""
    rows = [run["difference"] for run in result["runs"].values()]
    seeds = [int(seed) for seed in result["runs"]]
    values = [100 * row["AP"] for row in rows]
    low, high = ([100 * row["ci95"][end] for row in rows] for end in (0, 1))
    series = Series("found minus baseline, 95 %", seeds, values, 1, low=low, high=high)
    line = Series("", [min(seeds) - 0.5, max(seeds) + 0.5], [0, 0], 5, is_line=True)
    title = "Blood cells: three runs of the procedure"
    return Chart(title, "seed", "AP on test, percent points", (line, series))


def ranking(study: str, what: str) -> Chart:
    """Draw what the supernet says of 12 networks, and what their own trainings say."""
    result = _read("ranking_defaults")["studies"][study]
    chart = plots.ranking(result)
    tau = result["agreement"]["tau"]
    return Chart(
        f"Generated images, {what}: tau {tau:.2f}", chart.x_name, chart.y_name, chart.series
    )


def decision(result) -> Chart:
    """Draw how often a worse network is returned, over the probability that is asked for."""
    series = []
    for style, (is_null, name) in enumerate(((False, "some are better"), (True, "none is better"))):
        for seeds in (2, 3):
            rows = [
                row
                for row in result["rows"]
                if row["null"] == is_null and row["seeds"] == seeds and row["supernet"] == 0.3
            ]
            confidences = sorted({row["confidence"] for row in rows})
            worst = [
                100 * max(row["worse"] for row in rows if row["confidence"] == confidence)
                for confidence in confidences
            ]
            label = f"{name}, {seeds} seeds"
            number = 2 * style + seeds - 2
            series.append(Series(label, confidences, worst, number, is_line=True))
    title = "Simulated searches that return a worse network"
    return Chart(title, "refine.confidence", "of all searches, %", tuple(series))


if __name__ == "__main__":
    main()
