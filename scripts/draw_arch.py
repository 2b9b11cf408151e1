"""Draw an architecture as SVG: its blocks by level, and what each of them reads.

python scripts/draw_arch.py --arch=spinenet49 --output=spinenet49.svg
python scripts/draw_arch.py --arch=runs/mine/operation_search/result.json --output=found.svg
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("draw-arch")
