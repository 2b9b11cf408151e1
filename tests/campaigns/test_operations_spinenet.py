"""The search of a scale-permuted network's dilations through the scripts, on generated images."""

import json

import pytest
import tiny_run
from helpers import run_commands
from supernet_checks import one_output

from crnas_jax.analysis.record import Record
from crnas_jax.export.detector import load_detector

TINY = [
    "--config=configs/operations_spinenet.py:quick",
    "--config.devices=1",
    "--config.data.synthetic.train=16",
    "--config.data.synthetic.val=16",
    "--config.data.synthetic.test=8",
    "--config.data.min_size=64",
    "--config.data.max_size=64",
    "--config.detector.anchor_sizes=(16.0,)",
    "--config.detector.head_convolutions=1",
    "--config.supernet.dilations=(2,3)",  # so that what is found has some
    "--config.operation_train.epochs=1",
    "--config.detector_train.epochs=1",
    "--config.search.calibration_images=8",
    "--config.search.all_zero=continue",
    "--config.trained_bn_images=8",
    "--config.bootstrap=10",
    "--config.refine.operation_finalists=1",
    "--config.refine.short=1.0",
    "--config.search.max_latency=1e6",
]


@pytest.mark.campaign
@pytest.mark.programs
def test_from_images_to_a_decision_step_by_step(tmp_path):
    """Supernet, greedy search, finalists, last rung; what is done is not done again."""
    file, workdir = tmp_path / "baseline.json", tmp_path / "run"
    arch = one_output((2, "residual", (0, 1)))
    file.write_text(arch.to_json())
    flags = [*TINY, f"--config.baseline={file}", f"--workdir={workdir}"]
    commands = {
        "train_supernet": [*flags, "--level=operation"],
        "search_operations": flags,
        "run_crnas": flags,
        "status": [f"--workdir={workdir}", "--json"],
        "evaluate": [f"--workdir={workdir}", "--network=returned"],
        "export": [
            *(f"--workdir={workdir}", "--network=operation_supernet", "--rank=2"),
            f"--output={tmp_path / 'second'}",
        ],
    }
    outcomes = run_commands([[f"scripts/{name}.py", *more] for name, more in commands.items()])
    outcomes = dict(zip(commands, outcomes, strict=True))
    for name, outcome in outcomes.items():
        assert outcome["status"] == 0, (name, outcome["stderr"])
    assert "operation_supernet: finished before" in outcomes["search_operations"]["stdout"]
    assert "operation_search: finished before" in outcomes["run_crnas"]["stdout"]

    result = json.loads((workdir / "result.json").read_text())
    assert not {"stage_search", "stage_only"} & set(result)
    # Two levels with two dilations each; then the last three codes once more.
    assert result["operation_search"]["evaluated"] == 2 + 4 + 3
    assert result["returned"] == result["decision"]["network"] in ("baseline", "searched")
    (rows,) = result["finalists"].values()
    found, alone = (row["arch"].get("dilations", []) for row in rows)
    assert set(found) <= {2, 3}
    assert (len(found), alone) == (len(arch.blocks), [])
    for name in ("baseline", "searched"):
        assert 0 <= result[name]["AP"] <= 1
        assert set(result[name]["arch"]) - {"dilations"} == set(json.loads(arch.to_json()))
    assert json.loads((workdir / "search" / "latency.json").read_text())
    tiny_run.scored(workdir)

    second = json.loads((workdir / "operation_search" / "result.json").read_text())["ranking"][1]
    exported = load_detector(tmp_path / "second").detector.spec
    assert exported.dilations == tuple((2, 3)[op] for op in second["code"])

    status = json.loads(outcomes["status"]["stdout"])
    assert (status["state"], status["share"]) == ("finished", 1)
    record, page = Record.open(workdir), (workdir / "report.html").read_text()
    assert all(record.is_current(step) for step in record.steps.values())
    for text in ("dilating its convolutions", "level 2", "level 3", "a level gets its dilation"):
        assert text in page, text
