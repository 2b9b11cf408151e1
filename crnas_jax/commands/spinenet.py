"""SpineNet's search as commands."""

from crnas_jax.analysis import report
from crnas_jax.commands.command import experiment
from crnas_jax.experiments import spinenet
from crnas_jax.settings.run import RETURNED

_EXAMPLE = (
    "--config=configs/search_spinenet.py:laptop --config.data.folder=DATA --workdir=runs/spinenet"
)
_GOALS = tuple(f"{name}/{split}" for name in ("baseline", "searched") for split in ("val", "test"))


def _run(run, values):
    result = spinenet.run_spinenet(run)
    detector = f"the returned detector is in {run.path / RETURNED}"
    files = f"all files are in {run.path}; the numbers in {run.path / 'result.json'}"
    return result, f"{report.table(result)}\n{detector}\n{files}"


COMMANDS = {
    "run-spinenet": experiment(
        "Search a scale-permuted network, and return it if it is better than the seed network.",
        _EXAMPLE,
        _run,
        lambda config, _: spinenet.require_space(config),
        lambda config, values: list(_GOALS),
        on_cpu=True,
    ),
}
