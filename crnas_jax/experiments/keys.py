"""Keys of the steps of a run, and what its finished steps hand over to the next."""

import dataclasses
import re

from crnas_jax.arch.staged import Arch
from crnas_jax.experiments.run import Run, journal_file
from crnas_jax.runtime.files import digest
from crnas_jax.runtime.step_key import StepKey
from crnas_jax.search.journal import Journal
from crnas_jax.search.scores import best
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import run as run_settings
from crnas_jax.settings.run import COMPARED
from crnas_jax.settings.step_keys import CHOICES, READS, Reads
from crnas_jax.settings.supernets import operation_space
from crnas_jax.spaces.space import Code

FINALISTS, RANKING = "finalists", "ranking"
# Longest name of a network as a folder's.
_LONGEST = 100


def seed_step(step: str, seed_index: int) -> str:
    """Return the step of a network's training with a further seed; the first is the step itself."""
    return f"{step}/seed{seed_index}" if seed_index else step


def network_step(row: str, arch: Arch) -> str:
    """Return the step of one network among those of a row: `finalists` or `ranking`."""
    name = "-".join(map(str, arch.depths))
    if set(arch.dilations) != {1}:
        name = f"{name}_{'-'.join(map(str, arch.dilations))}"
    return f"{row}/{name if len(name) <= _LONGEST else digest(name)}"


def row_of(step: str) -> str:
    """Return the row of `READS` that a step belongs to."""
    parts = [part for part in step.split("/") if not re.fullmatch(r"seed\d+", part)]
    if parts[0] in (FINALISTS, RANKING):
        del parts[1:2]
    return "/".join(parts)


def network_code(arch: Arch) -> Code:
    """Return depths and dilations as one code: a network's in scores of trained networks."""
    return (*arch.depths, *arch.dilations)


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
    seed = re.search(r"/seed(\d+)", step)
    if seed is None or "seed" not in key.fields:
        return key
    fields = {**key.fields, "seed": key.fields["seed"] + int(seed[1])}
    return dataclasses.replace(key, fields=fields)


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
    if row in CHOICES:
        options = run_settings.refine_options(run.config)
        trains = options.finalists and (row == "allocation" or options.operation_finalists)
        return tuple(name for name in CHOICES[row] if trains or name != f"{FINALISTS}/val")
    earlier = READS[row].steps
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


def candidates(run: Run, choice: str) -> list[Arch] | None:
    """Return the networks that a choice of `CHOICES` is made of; None before its search is done.

    These are the best of the search, and where they are trained alone the network that the search
    would do without: the baseline's allocation, or no dilation.
    """
    options = run_settings.refine_options(run.config)
    level = "stage" if choice == "allocation" else "operation"
    step = f"{level}_search"
    result = run.workdir.finished(step, step_key(run, step))
    if result is None:
        return None
    count = options.finalists if level == "stage" else options.operation_finalists
    if level == "stage":
        unsearched = model_settings.baseline(run.config).depths
    else:
        unsearched = tuple(result["arch"]["depths"])
    codes = [tuple(row["code"]) for row in result["ranking"]][: max(count, 1)]
    archs = [_arch_of(run, level, code, unsearched) for code in codes]
    if options.finalists and count:
        archs.append(model_settings.found_arch(run.config, unsearched))
    return list(dict.fromkeys(archs))


def finalist_scores(run: Run, choice: str) -> list[tuple[Arch, float | None, float | None]]:
    """Return the candidates of a choice with their score in the supernet and their AP alone.

    Either is None where there is none; the candidates come in the order of `candidates`.
    """
    archs = candidates(run, choice) or []
    level = "stage" if choice == "allocation" else "operation"
    result = run.workdir.finished(f"{level}_search", step_key(run, f"{level}_search"))
    in_supernet = {
        _arch_of(run, level, row["code"], result["arch"]["depths"]): row["score"]
        for row in (result["ranking"] if archs else ())
    }
    file, alone = journal_file(run), {}
    if len(archs) > 1 and file.exists():
        journal = Journal(file, scores_key(run, FINALISTS, "val"))
        alone = {arch: journal.get(FINALISTS, network_code(arch), 0) for arch in archs}
    return [
        (arch, in_supernet.get(arch), alone[arch].value if alone.get(arch) else None)
        for arch in archs
    ]


def chosen(run: Run, choice: str) -> Arch | None:
    """Return the candidate that was best when trained alone; None before all of them are scored."""
    rows = finalist_scores(run, choice)
    if len(rows) == 1:
        return rows[0][0]
    if not rows or any(ap is None for *_, ap in rows):
        return None
    archs = {network_code(arch): arch for arch, *_ in rows}
    ((code, _),) = best(list(archs), [ap for *_, ap in rows], 1)
    return archs[code]


def compared(run: Run) -> dict[str, Arch | None]:
    """Return the networks of the last rung by name; None for one that is not found yet."""
    archs = {
        "baseline": model_settings.baseline(run.config),
        "stage_only": chosen(run, "allocation"),
        "searched": chosen(run, "network"),
    }
    return {name: archs[name] for name in run_settings.compared_networks(run.config)}


def owner(run: Run, network: str) -> str:
    """Return the compared network whose training serves one: where two coincide, the first."""
    archs = compared(run)
    arch = archs.get(network)
    return network if arch is None else next(name for name in archs if archs[name] == arch)


def _arch_of(run, level, code, depths):
    if level == "stage":
        return model_settings.found_arch(run.config, code)
    dilations = operation_space(run.config, depths).dilations_of(code)
    return model_settings.found_arch(run.config, depths, dilations)


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
        earlier = re.sub(r"/seed\d+$", "", step) + "/pretrain"
    key = step_key(run, earlier)
    return key.digest if key.is_known else None
