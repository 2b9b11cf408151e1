"""Studies as commands: how well supernets rank, which strategy finds most."""

import json

from absl import flags

from crnas_jax.analysis import plots, ranking, report
from crnas_jax.commands.command import RUN, Command, define_json, experiment
from crnas_jax.experiments.studies import LEVELS, ranking_study, strategy_study
from crnas_jax.settings.run import require_search


def _ranking_flags(values):
    for name, default, text in (
        ("subnets", 12, "Number of allocations that are drawn."),
        ("seeds", 2, "Trainings of each allocation."),
        ("repeats", 2, "Scorings of each allocation in the supernet."),
    ):
        flags.DEFINE_integer(name, default, text, flag_values=values)
    flags.DEFINE_string(
        "against",
        None,
        "Result of another study: its allocations and their AP; nothing is trained alone again.",
        flag_values=values,
    )


def _ranking(run, values):
    result = ranking_study(run, values.subnets, values.seeds, values.repeats, values.against)
    text = report.agreement(result["agreement"])
    return result, f"{text}\nthe numbers are in {run.path / 'ranking' / 'result.json'}"


def _strategy_flags(values):
    flags.DEFINE_integer(
        "seeds", 3, "Number of seeds of the searches.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_multi_enum("levels", LEVELS, LEVELS, "Which searches.", flag_values=values)


def _require_levels(config, values):
    for level in values.levels:
        require_search(config, level)


def _strategies(run, values):
    result = strategy_study(run, values.seeds, values.levels)
    return result, report.strategies(result)


def _scores_flags(values, _):
    flags.DEFINE_string("table", None, "CSV file with a header.", flag_values=values)
    flags.DEFINE_string("x", None, "Column with the scores, higher is better.", flag_values=values)
    flags.DEFINE_list(
        "y", None, "Column with the results to be ranked, or one for each seed.", flag_values=values
    )
    flags.DEFINE_string("names", "", "Column with the names of the networks.", flag_values=values)
    flags.DEFINE_string("plot", "", "PNG or SVG to write.", flag_values=values)
    define_json(values)


def _scores(values):
    columns = ranking.read_table(values.table, [values.x, *values.y])
    x, y = columns[:, 0], columns[:, 1:]
    if values.plot:
        names = ranking.read_names(values.table, values.names) if values.names else ()
        plots.save(plots.scatter(x, y, values.x, ", ".join(values.y), names), values.plot)
    result = ranking.nan_to_none(ranking.agreement(x, y))
    print(json.dumps(result) if values.json else report.agreement(result))


COMMANDS = {
    "ranking-study": experiment(
        "Compare the supernet's scores of subnets with the AP of subnets trained alone.",
        f"{RUN} --subnets=12 --seeds=2",
        _ranking,
        lambda config, _: require_search(config, "stage"),
        lambda _, values: ["stage_supernet", *([] if values.against else ["ranking/test"])],
        _ranking_flags,
    ),
    "compare-strategies": experiment(
        "Compare the search strategies on one config's supernets.",
        f"{RUN} --seeds=3",
        _strategies,
        _require_levels,
        lambda _, values: [f"{level}_supernet" for level in values.levels],
        _strategy_flags,
    ),
    "compare-scores": Command(
        "Measure how one column of a CSV file ranks another: Kendall's tau, Spearman, regret.",
        "--table=networks.csv --x=top1 --y=AP --plot=figure6.png",
        _scores_flags,
        _scores,
        ("table", "x", "y"),
    ),
}
