"""Scores every allocation of the budget; trains the stage supernet if need be.

python scripts/search_stage.py --config=configs/bccd.py --workdir=runs/bccd
"""

from crnas_jax import command

if __name__ == "__main__":
    command.launch(
        lambda pipeline: print(pipeline.search_stage()),
        check=lambda settings: settings.require_search(),
    )
