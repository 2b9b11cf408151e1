"""Compare the stage supernet's scores of subnets with the AP of subnets trained alone.

python scripts/ranking_study.py --config=configs/bccd.py --workdir=runs/bccd --subnets=12 --seeds=2
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("ranking-study")
