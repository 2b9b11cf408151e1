"""The search of scale-permuted networks with a table of scores in place of trainings.

python -m tests.table_search FLAGS, those of scripts/run_spinenet.py: its controller with its lock,
its record and its executors, up to the search's result.
"""

import hashlib
import json
import os
import pathlib
import time

from crnas_jax.runtime import interruption

# Steps of an attempt, each of which is saved, and the seconds of one.
STEPS, SECONDS = 8, 0.3


def score(arch, seed, folder, earlier):
    """Return the score of a network after as many steps as earlier attempts have left.

    On a node of a cluster named "broken" it raises, as training does with a driver that does not
    fit.
    """
    if os.environ.get("NODE") == "broken":
        raise RuntimeError("no device on this node")
    folder = pathlib.Path(folder)
    first = max((_newest(pathlib.Path(path)) for path in earlier), default=0)
    (folder / "began.json").write_text(json.dumps({"pid": os.getpid(), "step": first}))
    for step in range(first, STEPS):
        time.sleep(SECONDS)
        (folder / "checkpoints" / str(step + 1)).mkdir(parents=True)
        interruption.stop_if_requested(f"step {step + 1} is saved")
    value = int(hashlib.sha256(f"{seed} {json.dumps(arch)}".encode()).hexdigest()[:6], 16) / 2**24
    return {"AP": value, "ci95": [value, value], "images": 1}


def _newest(attempt):
    return max((int(path.name) for path in attempt.glob("checkpoints/*")), default=0)


def main():
    from crnas_jax import cli
    from crnas_jax.analysis import report
    from crnas_jax.experiments import spinenet, workers
    from crnas_jax.experiments.architecture_search import search_architecture

    def task(run, config, arch, seed, split, **options):
        arguments = {"arch": json.loads(arch.to_json()), "seed": seed}
        return {"function": "tests.table_search:score", "arguments": arguments}

    workers.task = task
    spinenet.run_spinenet = search_architecture
    report.table = json.dumps
    cli.script("run-spinenet")


if __name__ == "__main__":
    main()
