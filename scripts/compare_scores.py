"""Measure how one column of a CSV file ranks another: Kendall's tau, Spearman, regret, as JSON.

python scripts/compare_scores.py --table=networks.csv --x=top1 --y=AP --plot=figure6.png

The file has a header and a row for each network; --y may name one column for each seed (AP_0,AP_1).
--names is the column with the names that are drawn beside the points.
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("compare-scores")
