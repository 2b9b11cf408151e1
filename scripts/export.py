"""Write a network of a run, or a subnet of its supernet, for other programs.

python scripts/export.py --workdir=runs/mine --output=exports/mine
python scripts/export.py --workdir=runs/mine --output=exports/backbone --part=backbone
python scripts/export.py --workdir=runs/mine --output=exports/3 --network=stage_supernet --rank=3

The folder's README.md has the lines that load it: with crnas_jax, or with flax and Orbax alone.
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("export")
