"""SpineNet's search from start to end: labelled images in, a scale-permuted detector out.

1. Search the space around the seed network: candidates are trained on a proxy task.
2. Train the best ones and the seed network alone with a short schedule, and choose.
3. Train the found network and the seed network with several seeds each.
4. Decide on the validation split which of them is returned.
5. Evaluate both on the test split.
"""

from crnas_jax.arch import Architecture
from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.errors import UserError
from crnas_jax.experiments import comparison, keys, last_rung, steps
from crnas_jax.experiments.architecture_search import NUM_RANKED, STEP, search_architecture
from crnas_jax.experiments.last_rung import LastRung
from crnas_jax.experiments.run import Run
from crnas_jax.runtime.files import write_json
from crnas_jax.search.refine import Decision
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import run as run_settings
from crnas_jax.settings.search import SearchOptions

EXPERIMENT = "spinenet"
FORMAT = 4


def require_space(config) -> None:
    """Raise UserError unless a config can be searched for scale-permuted networks."""
    baseline = model_settings.baseline(config)
    if not isinstance(baseline, ScalePermuted):
        problem = f"{config.baseline!r} has stages, not scale-permuted blocks"
        remedy = "take spinenet_seed, or another scale-permuted network"
        raise UserError("config", "baseline", problem, remedy)
    if run_settings.levels(config):
        problem = f"{config.supernet.tie!r} asks for a search of dilations (crnas-jax run)"
        raise UserError("config", "supernet.tie", problem, "set it to 'stage'")
    run_settings.require_detection(config, "baseline")
    if baseline.dilations:
        problem = f"{config.baseline!r} has dilations, which go with the order of its blocks"
        raise UserError("config", "baseline", problem, "take the network without them")
    if run_settings.pretrained_networks(config):
        problem = "given, and candidates are trained on detection alone"
        raise UserError("config", "pretrain.networks", problem, "set it to ()")
    for name in ("stage_strategy", "operation_strategy", "max_latency"):
        default = getattr(SearchOptions, name)
        if config.search[name] != default:
            problem = f"{config.search[name]!r}, which is for searches in supernets"
            remedy = f"leave it at {default!r}: here count search.architecture_strategy and "
            raise UserError("config", f"search.{name}", problem, remedy + "space.max_flops_ratio")
    if config.refine.finalists > NUM_RANKED:
        problem, remedy = f"{config.refine.finalists}", f"take at most {NUM_RANKED}"
        raise UserError("config", "refine.finalists", problem, remedy)
    if not config.data.val:
        problem = "empty, and a search scores on that split"
        raise UserError("config", "data.val", problem, "name one")


def run_spinenet(run: Run) -> dict:
    """Run all steps; write and return `result.json`."""
    rung, decision = decide(run)
    search = run.workdir.finished(STEP, keys.step_key(run, STEP))
    names = ("arch", "score", "evaluated", "rejected", "failed")
    result = {
        "format": FORMAT,
        "experiment": EXPERIMENT,
        "architecture_search": {name: search[name] for name in names},
        **comparison.described(rung, decision, ("architecture",), (STEP,)),
    }
    write_json(run.path / "result.json", result)
    for network in rung.names:
        steps.receptive_fields(run, network, steps.detector(run, rung.archs[network]))
    return result


def found(run: Run) -> Architecture:
    """Return the found network of a finished search.

    Raises:
      UserError: it is not finished; it has a command of its own, which leaves accelerators alone.
    """
    if run.workdir.finished(STEP, keys.step_key(run, STEP)) is None:
        remedy = "let crnas-jax run-spinenet finish it, or train --network=baseline alone"
        raise UserError(run.path, STEP, "not finished with these fields", remedy)
    return last_rung.choose(run, "architecture")


def decide(run: Run) -> tuple[LastRung, Decision]:
    """Train the last rung and decide, after everything before it; `returned` is written.

    Returns:
      The rung, in which all networks are trained, and the decision on `val`.
    """
    search_architecture(run)
    last_rung.choose(run, "architecture")
    return last_rung.decide(run)
