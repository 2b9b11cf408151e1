"""Greedy search of the dilations with the operation supernet's weights, which it trains if need be.

python scripts/search_operations.py --config=configs/bccd.py --workdir=runs/bccd
"""

from crnas_jax import command

if __name__ == "__main__":
    command.launch(
        lambda pipeline: print(pipeline.search_operations()),
        check=lambda settings: settings.require_search(),
    )
