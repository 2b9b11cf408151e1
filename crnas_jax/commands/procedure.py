"""The procedure as commands: the whole of it, and each of its steps."""

from absl import flags

from crnas_jax.analysis import report
from crnas_jax.commands.command import RUN, experiment
from crnas_jax.experiments import crnas, search_cost
from crnas_jax.settings.run import (
    COMPARED,
    NETWORKS,
    RETURNED,
    compared_networks,
    levels,
    refine_options,
    require_detection,
    require_pretraining,
    require_search,
)

_EVALUATED = (*COMPARED, RETURNED)
_LEVELS = ("stage", "operation")


def _whole_run(config, values):
    if not levels(config) and not config.data.val:  # nothing is searched
        return ["baseline/test"]
    splits = ("val", "test") if refine_options(config).finalists else ("test",)
    return [f"{network}/{split}" for network in compared_networks(config) for split in splits]


def _plan(run, values):
    """Do nothing: the plan is printed before the action of every command."""


def _run(run, values):
    result = crnas.run_crnas(run)
    detector = f"the returned detector is in {run.path / RETURNED}"
    files = f"all files are in {run.path}; the numbers in {run.path / 'result.json'}"
    return result, f"{report.table(result)}\n{detector}\n{files}"


def _level(values):
    flags.DEFINE_enum("level", "stage", _LEVELS, "Allocations or dilations.", flag_values=values)


def _train_supernet(run, values):
    folder = run.path / crnas.train_supernet(run, values.level).network
    return {"folder": str(folder)}, f"the supernet is in {folder}"


def _search_flags(values):
    _level(values)
    flags.DEFINE_bool(
        "dry_run",
        False,
        "Print what the search would cost, from a short measurement, and write nothing.",
        flag_values=values,
    )


def _search(run, values):
    if values.dry_run:
        cost = search_cost.search_cost(run, values.level)
        return cost, report.cost(cost)
    search = crnas.search_stage if values.level == "stage" else crnas.search_operations
    result = search(run)
    return result, report.search(values.level, result)


def _network_flag(values):
    flags.DEFINE_enum(
        "network", None, _EVALUATED, "Network; config.network when not given.", flag_values=values
    )


def _network(config, values):
    return values.network or config.network


def _goals(config, values, part):
    network = _network(config, values)
    return _whole_run(config, values) if network == RETURNED else [f"{network}{part}"]


def _train_detector(run, values):
    network = _network(run.config, values)
    folder = run.path / crnas.train_network(run, network)
    text = f"the detector is in {folder}: crnas-jax predict --detector={folder} --images=..."
    return {"folder": str(folder)}, text


def _evaluate(run, values):
    result = crnas.evaluate(run, _network(run.config, values))
    return result, report.metrics(result)


def _pretrain_flags(values):
    flags.DEFINE_enum("network", "stage_supernet", NETWORKS, "Which.", flag_values=values)


def _pretrain(run, values):
    result = crnas.pretrain(run, values.network)
    text = f"{values.network}: top-1 {result['top1']:.3f}, top-5 {result['top5']:.3f}"
    return result, f"{text}; weights in {run.path / values.network / 'pretrain'}"


COMMANDS = {
    "run": experiment(
        "Run the whole procedure: images and a budget in, a reallocated detector out.",
        RUN,
        _run,
        lambda config, _: require_search(config),
        _whole_run,
    ),
    "plan": experiment(
        "Check config and data, print the plan and what it says about both; write nothing.",
        RUN,
        _plan,
        lambda *_: None,
        _whole_run,
        is_dry=lambda values: True,
    ),
    "train-supernet": experiment(
        "Train the supernet of allocations, or of dilations (--level=operation).",
        f"{RUN} --level=stage",
        _train_supernet,
        lambda config, values: require_detection(config, f"{values.level}_supernet"),
        lambda _, values: [f"{values.level}_supernet"],
        _level,
    ),
    "search": experiment(
        "Search the allocation, or the dilations (--level=operation), in its supernet.",
        f"{RUN} --level=stage --dry_run",
        _search,
        lambda config, values: require_search(config, values.level),
        lambda _, values: [f"{values.level}_search"],
        _search_flags,
        lambda values: values.dry_run,
    ),
    "train-detector": experiment(
        "Train the found network, its stage-only form, the baseline, or what is returned.",
        f"{RUN} --network=baseline",
        _train_detector,
        lambda config, values: require_detection(config, _network(config, values)),
        lambda config, values: _goals(config, values, ""),
        _network_flag,
    ),
    "evaluate": experiment(
        "Evaluate one of them on the test split.",
        f"{RUN} --network=baseline",
        _evaluate,
        lambda config, values: require_detection(config, _network(config, values)),
        lambda config, values: _goals(config, values, "/test"),
        _network_flag,
    ),
    "pretrain": experiment(
        "Train a supernet or a network on classification before detection.",
        "--config=configs/quickstart.py:pretrain --workdir=runs/mine --network=stage_supernet",
        _pretrain,
        lambda config, values: require_pretraining(config, values.network),
        lambda _, values: [f"{values.network}/pretrain"],
        _pretrain_flags,
    ),
}
