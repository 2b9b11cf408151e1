"""AP of the networks of a finished run with running averages and with recalibrated statistics.

    python benchmarks/trained_bn.py --workdir=runs/bccd

Every training of the last rung is taken from its last checkpoint; nothing is trained.
"""

from absl import app, flags
from common import report
from ml_collections import ConfigDict

from crnas_jax.evaluation.predict_split import predict_split, split_metrics
from crnas_jax.experiments import keys, steps
from crnas_jax.experiments.last_rung import LastRung
from crnas_jax.experiments.run import open_run
from crnas_jax.runtime.workdir import read_config
from crnas_jax.settings import data as data_settings
from crnas_jax.training.loop import train

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)


def main(argv):
    """Score every network and seed both ways on the test split."""
    del argv
    run = open_run(ConfigDict(read_config(_WORKDIR.value)["config"]), _WORKDIR.value, dry=True)
    rung, rows = LastRung(run, keys.compared(run)), []
    for name in rung.names:
        for seed in range(rung.num_seeds):
            step = keys.seed_step(name, seed)
            job = steps.network_job(run, step, rung.archs[name])
            running = train(job, run.path / step)
            recalibrated = steps.load_trained(run, step, job.model)
            rows.append({"network": step})
            for kind, variables in (("running", running), ("recalibrated", recalibrated)):
                detections = predict_split(
                    job.model,
                    variables,
                    run.sources["test"],
                    data_settings.image_size(run.config),
                    job.options.batch_size,
                )
                rows[-1][kind] = split_metrics(run.sources["test"], detections)["AP"]
    means = {
        kind: sum(row[kind] for row in rows) / len(rows) for kind in ("running", "recalibrated")
    }
    report("trained_bn", {"means": means, "rows": rows})


if __name__ == "__main__":
    app.run(main)
