"""Write report.html into a run's folder: one page with all that is known, to be sent on.

python scripts/report.py --workdir=runs/mine

Every command that works in a folder writes it at its end; this makes it again at any time, of an
unfinished run too. Nothing is trained or evaluated.
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("report")
