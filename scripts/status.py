"""Say how far a run is, when it ends and what it has found; from any terminal.

python scripts/status.py --workdir=runs/mine
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("status")
