"""Measure how one column of a CSV file ranks another: Kendall's tau, Spearman, regret, as JSON.

python scripts/compare_scores.py --table=networks.csv --x=top1 --y=AP --plot=figure6.png

The file has a header and a row for each network; --y may name one column for each seed (AP_0,AP_1).
--names is the column with the names that are drawn beside the points.
"""

import json

from absl import flags

from crnas_jax import cli
from crnas_jax.analysis import plots, ranking
from crnas_jax.errors import UserError

_TABLE = flags.DEFINE_string("table", None, "CSV file.")
_X = flags.DEFINE_string("x", None, "Column with the scores, higher is better.")
_Y = flags.DEFINE_list("y", None, "Column or columns with the results to be ranked.")
_NAMES = flags.DEFINE_string("names", "", "Column with the names of the networks.")
_PLOT = flags.DEFINE_string("plot", "", "PNG to write.")


def main():
    if not _Y.value:
        raise UserError("command line", "--y", "empty", "name a column")
    columns = ranking.read_table(_TABLE.value, [_X.value, *_Y.value])
    x, y = columns[:, 0], columns[:, 1:]
    if _PLOT.value:
        names = ranking.read_names(_TABLE.value, _NAMES.value) if _NAMES.value else ()
        plots.scatter(_PLOT.value, x, y, _X.value, ", ".join(_Y.value), names)
    print(json.dumps(ranking.nan_to_none(ranking.agreement(x, y))))


if __name__ == "__main__":
    cli.run_script(main, ["table", "x", "y"])
