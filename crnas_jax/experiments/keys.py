"""Keys of the steps of a run, and what its finished steps hand over to the next."""

import dataclasses
import json

from crnas_jax.arch import Architecture
from crnas_jax.arch import read as read_arch
from crnas_jax.arch.graphs import graph_code
from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.experiments.run import Run, journal_file
from crnas_jax.runtime.files import digest
from crnas_jax.runtime.step_key import FINALISTS, RANKING, StepKey, row_of, split_seed
from crnas_jax.search.journal import Journal
from crnas_jax.search.scores import best
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import run as run_settings
from crnas_jax.settings.architectures import found_network, proposal_options
from crnas_jax.settings.run import COMPARED
from crnas_jax.settings.step_keys import CHOICES, LEVEL_OF, READS, Reads, choices
from crnas_jax.settings.supernets import operation_space
from crnas_jax.spaces.space import Code

# Longest name of a network as a folder's.
_LONGEST = 100
# A run with seed s trains with s, s + 1000, ..: runs with neighbouring seeds share no training.
_SEED_STRIDE = 1000
# Finalists have a seed of their own: what chose a network must not be what judges it.
_FINALISTS_SEED, _CANDIDATES_SEED = 500, 250


def training_seed(run: Run, step: str) -> int:
    """Return the seed that a step draws with."""
    offset = _FINALISTS_SEED if row_of(step) == FINALISTS else 0
    return run.options.seed + _SEED_STRIDE * split_seed(step)[1] + offset


def candidate_seed(run: Run, index: int) -> int:
    """Return a seed of the candidates of an architecture search, beside those of steps."""
    return run.options.seed + _SEED_STRIDE * index + _CANDIDATES_SEED


def network_step(row: str, arch: Architecture) -> str:
    """Return the step of one network among those of a row: `finalists` or `ranking`."""
    return f"{row}/{arch.label if len(arch.label) <= _LONGEST else digest(arch.label)}"


def network_code(arch: Architecture) -> Code:
    """Return a network's code in scores of trained networks: depths or graph, and dilations."""
    code = graph_code(arch) if isinstance(arch, ScalePermuted) else arch.depths
    return (*code, *arch.dilations)


def step_key(run: Run, step: str) -> StepKey:
    """Return the key of a step; inputs from searches to come are None.

    A training hands over its weights, which its key stands for, and a choice the chosen network: a
    repeated search that leads to the same one repeats nothing after it.
    """
    row, inputs = row_of(step), {}
    for earlier in earlier_rows(run, row):
        inputs[earlier] = _handed_over(run, step, row, earlier)
    if _starts_from_others(run, step, row):
        inputs["init_from"] = run.init_digests[init_name(run, step)]
    key = key_of(run, READS[row], inputs)
    if "seed" not in key.fields:
        return key
    return dataclasses.replace(key, fields={**key.fields, "seed": training_seed(run, step)})


def key_of(run: Run, reads: Reads, inputs: dict[str, str | None]) -> StepKey:
    """Return the key of what `reads` says and of inputs."""
    digests = {split: parts["annotations"] for split, parts in run.data_digests.items()}
    data = {split: digests[split] for split in reads.splits if split in digests}
    return StepKey(run.fields(reads), data, inputs)


def scores_key(run: Run, row: str, split: str) -> str:
    """Return the journal's key of scores of networks that a row of `READS` trains."""
    inputs = {name: run.init_digests[name] for name in COMPARED if name in run.init_digests}
    if row != FINALISTS:
        pretrained = set(COMPARED) & set(run_settings.pretrained_networks(run.config))
        inputs |= {
            f"{n}/pretrain": key_of(run, READS[f"{n}/pretrain"], {}).digest for n in pretrained
        }
    training = key_of(run, READS[row], inputs)
    return key_of(run, READS[f"{row}/{split}"], {row: training.digest}).digest


def earlier_rows(run: Run, row: str) -> tuple[str, ...]:
    """Return the rows of `READS` and `CHOICES` that a row reads with this config."""
    earlier, made = (CHOICES.get(row) or READS[row].steps), choices(run.config)
    # The found network is what the last choice leads to.
    earlier = (made[-1] if name == "network" else name for name in earlier)
    # Where there are no stages, nothing is allocated.
    earlier = tuple(name for name in earlier if name in made or name not in CHOICES)
    if row in CHOICES:
        trains = run_settings.refine_options(run.config).num_finalists(LEVEL_OF[row])
        return tuple(name for name in earlier if trains or name != f"{FINALISTS}/val")
    if _is_pretrained(run, row):
        earlier = (*earlier, f"{row}/pretrain")
    if row == "operation_supernet" and run_settings.starts_from_stage_supernet(run.config):
        earlier = (*earlier, "stage_supernet")
    return earlier


def init_name(run: Run, step: str) -> str:
    """Return the entry of `init_from` that the training of a step starts from."""
    name = step.partition("/")[0]
    if name == FINALISTS:
        is_baseline = step == network_step(FINALISTS, model_settings.baseline(run.config))
        return "baseline" if is_baseline else "searched"
    return "baseline" if name == RANKING else name


def candidates(run: Run, choice: str) -> list[Architecture] | None:
    """Return the networks that a choice of `CHOICES` is made of; None before its search is done.

    These are the best of the search, and where they are trained alone the network that the search
    would do without: the baseline or its allocation, or no dilation. A baseline that breaks a limit
    or the budget is none of them, as what is found must not; the last rung compares it.
    """
    ranking = _ranking(run, choice)
    if ranking is None:
        return None
    count = run_settings.refine_options(run.config).num_finalists(LEVEL_OF[choice])
    archs, baseline = list(ranking)[: max(count, 1)], model_settings.baseline(run.config)
    if count and choice == "architecture":
        archs.append(baseline)
    elif count and choice == "network":
        archs.append(model_settings.dilated(archs[0]))
    elif count and not recorded_excess(run):
        archs.append(model_settings.dilated(baseline))
    return list(dict.fromkeys(archs))


def recorded_excess(run: Run) -> str:
    """Return `limits.baseline_excess` as the finished stage search found it."""
    if not run_settings.has_stages(run.config):
        return ""
    result = run.workdir.finished("stage_search", step_key(run, "stage_search"))
    return result.get("baseline_excess", "")  # results of earlier versions do not have it


def finalist_scores(run: Run, choice: str) -> list[tuple[Architecture, float | None, float | None]]:
    """Return the candidates of a choice with their score in the supernet and their AP alone.

    Either is None where there is none; the candidates come in the order of `candidates`.
    """
    archs = candidates(run, choice) or []
    in_supernet = _ranking(run, choice) or {}
    file, alone = journal_file(run), {}
    if len(archs) > 1:
        journal = Journal(file, scores_key(run, FINALISTS, "val"), read_only=True)
        alone = {arch: journal.get(FINALISTS, network_code(arch), 0) for arch in archs}
    return [
        (arch, in_supernet.get(arch), alone[arch].value if alone.get(arch) else None)
        for arch in archs
    ]


def chosen(run: Run, choice: str) -> Architecture | None:
    """Return the candidate that was best when trained alone; None before all of them are scored.

    The allocation of a baseline without stages is its own.
    """
    if choice == "allocation" and not run_settings.has_stages(run.config):
        return model_settings.dilated(model_settings.baseline(run.config))
    rows = finalist_scores(run, choice)
    if len(rows) == 1:
        return rows[0][0]
    if not rows or any(ap is None for *_, ap in rows):
        return None
    archs = {network_code(arch): arch for arch, *_ in rows}
    ((code, _),) = best(list(archs), [ap for *_, ap in rows], 1)
    return archs[code]


def compared(run: Run) -> dict[str, Architecture | None]:
    """Return the networks of the last rung by name; None for one that is not found yet."""
    names, made = run_settings.compared_networks(run.config), choices(run.config)
    archs = {"baseline": model_settings.baseline(run.config), "searched": chosen(run, made[-1])}
    if "stage_only" in names:
        archs["stage_only"] = chosen(run, "allocation")
    return {name: archs[name] for name in names}


def owner(run: Run, network: str) -> str:
    """Return the compared network whose training serves one: where two coincide, the first."""
    # The first needs no search, and a config may allow none.
    return network if network == COMPARED[0] else owners(compared(run)).get(network, network)


def owners(archs: dict[str, Architecture | None]) -> dict[str, str]:
    """Return `owner` of every compared network; one that is not found yet has itself."""
    firsts = {arch: name for name, arch in reversed(archs.items())}
    return {name: name if arch is None else firsts[arch] for name, arch in archs.items()}


def num_seeds(run: Run, archs: dict[str, Architecture | None]) -> int:
    """Return the trainings of each compared network; one where there is nothing to compare."""
    is_alone = len(set(archs.values())) == 1
    return 1 if is_alone else run_settings.refine_options(run.config).num_seeds


def _ranking(run, choice):
    """Return the networks that the search of a choice ranked, best first, and their scores."""
    step, wanted = f"{LEVEL_OF[choice]}_search", proposal_options(run.config).evaluations
    result = run.workdir.finished(step, step_key(run, step))
    if result is None or result.get("proposals", wanted) != wanted:  # more are asked for
        return None
    rows = [(tuple(row["code"]), row["score"]) for row in result["ranking"]]
    if choice == "allocation":
        return {model_settings.found_arch(run.config, code): score for code, score in rows}
    if choice == "architecture":
        return {found_network(run.config, code): score for code, score in rows}
    arch = read_arch(json.dumps(result["arch"]))
    dilations_of = operation_space(run.config, arch).dilations_of
    return {model_settings.dilated(arch, dilations_of(code)): score for code, score in rows}


def _is_pretrained(run, row):
    name = "baseline" if row == RANKING else row
    return name in run_settings.pretrained_networks(run.config)


def _starts_from_others(run, step, row):
    """Tell whether a training starts from `init_from`; pre-training comes before detection."""
    if row.endswith(("/val", "/test")) or init_name(run, step) not in run.init_digests:
        return False
    return row.endswith("/pretrain") or not _is_pretrained(run, row)


def _handed_over(run, step, row, earlier):
    """Return the digest of what a step gets from a row that it reads; None where unknown."""
    if earlier in CHOICES:
        arch = chosen(run, earlier)
        return None if arch is None else digest(arch.to_json())
    if row.startswith(f"{earlier}/"):  # detections come from the training around them
        earlier = step.rpartition("/")[0]
    elif earlier == f"{row}/pretrain":
        earlier = f"{split_seed(step)[0]}/pretrain"
    key = step_key(run, earlier)
    return key.digest if key.is_known else None
