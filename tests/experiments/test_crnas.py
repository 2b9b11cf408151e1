"""The whole procedure on a tiny synthetic set, as a user launches it."""

import json
import shutil
import subprocess
import sys

import pytest
from helpers import ENVIRONMENT, ROOT, run_commands
from orbax.checkpoint import v1 as ocp
from tiny_run import TINY, baseline, check_result, scored


def _command(script, workdir, *arguments):
    """Return a command on a baseline of six blocks, in a file beside the working folder."""
    flags = [f"--workdir={workdir}", baseline(workdir, (1, 2, 1, 2))]
    return [f"scripts/{script}.py", *TINY, *flags, *arguments]


def _launch(script, workdir, *arguments):
    """Run a script as a user does, in a process of its own."""
    command = [sys.executable, *_command(script, workdir, *arguments)]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = _launch("run_crnas", folder)
    assert run.returncode == 0, run.stderr
    assert "2 allocations" in run.stdout
    assert "returned: the " in run.stdout
    assert "AP minus baseline" in run.stdout
    return folder


def test_the_result_keeps_the_contract(workdir):
    result = check_result(workdir)
    assert result["searched"]["flops"] == pytest.approx(result["baseline"]["flops"], rel=0.02)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_weights_load_as_the_readme_says(workdir):
    variables = ocp.load(workdir / "returned" / "variables")
    assert variables["params"]["backbone"]["stage2"]["block2"]["conv2"]["kernel"].shape == (
        3,
        3,
        8,
        8,
    )
    assert set(variables) == {"params", "batch_stats"}


def test_the_same_command_repeats_nothing(workdir):
    kept = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    result = (workdir / "result.json").read_text()
    run = _launch("run_crnas", workdir)
    assert run.returncode == 0, run.stderr
    assert (workdir / "result.json").read_text() == result
    changed = {path.name for path, time in kept.items() if path.stat().st_mtime_ns != time}
    # What says that the command was here, and pages made of the same.
    notes = {".generation", "invocations.jsonl", "plan.json", "data.json", "report.html"}
    notes.add("progress.json")
    assert changed == {"result.json", *notes}
    assert ": step" not in run.stdout


def test_another_strategy_scores_nothing_again(workdir, tmp_path):
    """What the search finds may differ; no subnet is scored twice, no supernet trained again."""
    folder = tmp_path / "run"
    shutil.copytree(workdir, folder)
    shutil.copy(workdir.with_name("baseline.json"), tmp_path)
    (journal,) = folder.glob("journal.jsonl")
    before = journal.read_text()
    flags = ["--config.search.beam=2", "--config.bootstrap=20", "--redo"]
    (run,) = run_commands([_command("search_operations", folder, *flags)])
    assert run["status"] == 0, run["stderr"]
    assert "repeats     operation_search: search.beam 3 -> 2" in run["stdout"]
    assert "operation_supernet: finished before" in run["stdout"]
    assert ": step" not in run["stdout"]
    after = journal.read_text()
    assert after.startswith(before)
    scored(folder)


def test_a_race_over_two_budgets_within_limits(workdir, tmp_path):
    folder, arguments = tmp_path / "run", ["--config.search.stage_strategy=racing"]
    arguments += ["--config.search.budgets=(5,)", "--config.search.max_flops=3250000"]
    arguments += ["--config.search.max_latency=1e6"]
    shutil.copytree(workdir / "stage_supernet", folder / "stage_supernet")
    shutil.copy(workdir / "config.json", folder)
    commands = [
        _command("search_stage", tmp_path / "dry", *arguments, "--dry_run", "--json"),
        _command("search_stage", folder, *arguments),
    ]
    dry, run = run_commands(commands)
    assert dry["status"] == 0, dry["stderr"]
    cost = json.loads(dry["stdout"].splitlines()[-1])
    assert cost["evaluations"] == 3
    assert cost["image_passes"] <= 3 * 32
    assert cost["device_hours"] > 0
    assert not (tmp_path / "dry").exists()
    assert run["status"] == 0, run["stderr"]
    assert "stage_supernet: finished before" in run["stdout"]
    result = json.loads((folder / "stage_search" / "result.json").read_text())
    assert result["image_passes"] <= cost["image_passes"]
    assert [row["budget"] for row in result["pareto"]] == [5, 6]
    assert all(row["flops"] <= 3250000 for row in result["pareto"])
    assert result["arch"] == result["pareto"][1]["arch"]
    latency = json.loads((folder / "search" / "latency.json").read_text())
    assert latency
    assert all(milliseconds > 0 for milliseconds in latency.values())


REFUSED = {
    "seed=1": "stage_supernet (seed 0 -> 1), stage_search (seed 0 -> 1, stage_supernet is another)",
    "budget=4": "nearest: 5, 6",
    "detector_train.schedule=cosin": "detector_train.schedule",
    "search.beam=0": "search.beam",
    "search.bn=x": "search.bn",
    "supernet.kernel_sharing=x": "supernet.kernel_sharing",
}


def test_what_would_fail_late_is_refused_at_the_start(workdir, tmp_path):
    folders = dict.fromkeys(REFUSED, tmp_path / "w") | {"seed=1": workdir}
    commands = [
        _command("run_crnas", folder, f"--config.{flag}") for flag, folder in folders.items()
    ]
    for outcome, message in zip(run_commands(commands), REFUSED.values(), strict=True):
        assert outcome["status"] == 2, outcome["stderr"]
        assert "Traceback" not in outcome["stderr"]
        line = outcome["stderr"].strip().splitlines()[-1]
        assert line.startswith("error: ")
        assert message in line
    assert not (tmp_path / "w").exists()
