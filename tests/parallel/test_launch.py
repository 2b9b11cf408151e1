"""The files of `scripts/launch` start commands that are not refused."""

import re

import jax
import pytest
import yaml
from helpers import ROOT

from crnas_jax import cli
from crnas_jax.settings.architectures import executor_options
from crnas_jax.settings.check import check

LAUNCH = ROOT / "scripts" / "launch"
RECIPES = ("stage_train", "operation_train", "detector_train", "pretrain", "search")


def _jobset():
    """Return the example's devices, and the flags of its command."""
    content = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    job = content["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    (count,) = (v["value"] for v in container["env"] if v["name"] == "JAX_NUM_PROCESSES")
    assert job["parallelism"] == job["completions"] == int(count)
    return int(count) * container["resources"]["limits"]["nvidia.com/gpu"], container["args"]


def _slurm():
    text = (LAUNCH / "slurm.sh").read_text()
    nodes, each = (
        int(re.search(rf"#SBATCH --{name}=(\d+)", text)[1]) for name in ("nodes", "gpus-per-node")
    )
    config = re.search(r"configs/\w+.py", text)[0]
    return nodes * each, [f"--config={config}", *re.findall(r"--config\.\S+", text)]


def _two_processes():
    text = (LAUNCH / "two_processes.sh").read_text()
    each = int(re.search(r"device_count=(\d+)", text)[1])
    return 2 * each, re.findall(r"--config\S+", text)


@pytest.mark.parametrize("example", [_jobset, _slurm, _two_processes])
def test_the_batches_of_an_example_divide_by_its_devices(example):
    num_devices, arguments = example()
    config = cli._parsed(cli.load("run"), arguments).config
    config.devices = min(num_devices, jax.device_count())
    check(config)
    assert all(config[recipe].batch_size % num_devices == 0 for recipe in RECIPES)


def _ray_job():
    content = yaml.safe_load((LAUNCH / "rayjob.yaml").read_text())
    return content["spec"]["entrypoint"].split()[1:]


def _ray_slurm():
    text = (LAUNCH / "ray_slurm.sh").read_text()
    given = text.partition("#SBATCH")[0]
    example = "run-spinenet", *re.findall(r"--(?:config|workdir)\S+", given)
    executor = re.findall(r"--config\.executor\.\S+", text.replace('"', ""))
    assert len(executor) == 2
    return [*example, *executor]


@pytest.mark.parametrize("example", [_ray_job, _ray_slurm])
def test_an_example_of_ray_is_a_search_on_a_cluster(example):
    name, *arguments = example()
    config = cli._parsed(cli.load(name), arguments).config
    config.devices = 1
    check(config)
    assert executor_options(config).kind == "ray"
    assert executor_options(config).address
