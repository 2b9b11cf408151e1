"""The whole procedure on a tiny synthetic set, as a user launches it."""

import json
import shutil
import subprocess
import sys

import pytest
from helpers import ENVIRONMENT, ROOT, run_commands
from orbax.checkpoint import v1 as ocp

from crnas_jax.arch.staged import Arch

TINY = [
    "--config=configs/quickstart.py",
    "--config.widths=(4,8,16,32)",
    "--config.supernet.widths=(4,8,16,32)",
    "--config.supernet.grids=((1,2),(2,),(1,),(1,2))",
    "--config.data.synthetic.train=16",
    "--config.data.synthetic.val=32",
    "--config.data.synthetic.test=8",
    "--config.data.min_size=64",
    "--config.data.max_size=64",
    "--config.detector.pyramid_channels=16",
    "--config.detector.head_channels=32",
    "--config.detector.rpn_samples=32",
    "--config.detector.pre_nms=(40,40)",
    "--config.detector.post_nms=(20,20)",
    "--config.detector.roi_samples=16",
    "--config.detector.nms_candidates=40",
    "--config.stage_train.epochs=1",
    "--config.operation_train.epochs=1",
    "--config.detector_train.epochs=1",
    "--config.search.batch_size=8",
    "--config.search.calibration_images=8",
    "--config.bootstrap=10",
    "--config.search.all_zero=continue",
    "--config.trained_bn_images=8",
    "--config.refine.finalists=2",
    "--config.refine.operation_finalists=1",
    "--config.refine.short=1.0",  # so that finalists and last rung share programs
]


def _command(script, workdir, *arguments):
    """Return a command on a baseline of six blocks, in a file beside the working folder."""
    baseline = workdir.with_name("baseline.json")
    baseline.write_text(Arch("resnet_basic", (1, 2, 1, 2)).to_json())
    flags = [f"--workdir={workdir}", f"--config.baseline={baseline}"]
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
    result = json.loads((workdir / "result.json").read_text())
    assert result["stage_search"]["evaluated"] == 2
    assert 2 + 4 + 6 + 6 + 2 <= result["operation_search"]["evaluated"] <= 2 + 4 + 6 + 6 + 4
    assert result["searched"]["flops"] == pytest.approx(result["baseline"]["flops"], rel=0.02)
    for network in ("baseline", "stage_only", "searched"):
        assert {"arch", "flops", "params", "AP", "AP50", "ARl", "per_class"} <= set(result[network])
        mean = sum(row["AP"] for row in result[network]["seeds"]) / len(result[network]["seeds"])
        assert result[network]["AP"] == pytest.approx(mean)
    rows = result["finalists"]["allocation"]
    assert {tuple(row["arch"]["depths"]) for row in rows} == {(1, 2, 1, 2), (2, 2, 1, 1)}
    assert all(0 <= row["AP"] <= 1 and 0 <= row["supernet_score"] <= 1 for row in rows)
    assert len(result["finalists"]["network"]) in (0, 2)  # none where ones were found
    decision = result["decision"]
    decided = ("baseline", "stage_only", "searched")
    assert decision["network"] == result["returned"] in decided
    assert {"probability", "difference", "ci95", "reason"} <= set(decision)
    # What is published is the decided network, trained with the run's seed.
    same = [name for name in decided if result[name]["arch"] == result[decision["network"]]["arch"]]
    digest = (workdir / "returned" / "variables.sha256").read_text()
    assert digest == (workdir / same[0] / "variables.sha256").read_text()
    seconds = dict(result["seconds"])
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()), abs=0.1)
    low, high = result["difference"]["ci95"]
    assert low <= result["difference"]["AP"] <= high
    journal = [json.loads(line) for line in (workdir / "journal.jsonl").read_text().splitlines()]
    codes = [(row["search"], tuple(row["code"])) for row in journal]
    assert len(codes) == len(set(codes))


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
    assert changed == {"result.json"}
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
    codes = [json.loads(line) for line in after.splitlines()]
    codes = [(row["search"], tuple(row["code"]), row["batches"]) for row in codes]
    assert len(codes) == len(set(codes))


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
