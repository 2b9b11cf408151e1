"""Several hosts: the whole procedure on two processes, and what devices and hosts compute."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny_run
from helpers import ENVIRONMENT, ROOT
from tiny_run import STOPPED, Hosts, check_result, joint_flags, scored, wait_until

from crnas_jax.data.coco import CocoSource
from crnas_jax.data.records.builders import detection_data_set
from crnas_jax.data.records.writer import prepare

pytestmark = pytest.mark.campaign


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of the whole procedure, whose steps ran on two processes one by one.

    The first command begins on one process, which is asked to stop and goes on with two. The last
    one is asked to stop on one of two, and goes on with one.
    """
    workdir = tmp_path_factory.mktemp("joint") / "run"
    flags = joint_flags(workdir)
    alone = tiny_run.start("train_supernet", *flags, num_devices=1)
    wait_until((workdir / "stage_supernet" / "options.json").exists, 120)
    alone.send_signal(signal.SIGTERM)
    _, err = alone.communicate()
    assert alone.returncode == STOPPED, err
    for script, *more in (
        ("train_supernet",),
        ("search_stage",),
        ("search_operations",),
        ("train_detector", "--network=baseline"),
        ("evaluate", "--network=baseline"),
    ):
        assert Hosts.run(script, *flags, *more)
    hosts = Hosts.start("run_crnas", *flags)
    wait_until(lambda: (workdir / "searched").exists() or (workdir / "stage_only").exists(), 120)
    os.kill(hosts.processes[1].pid, signal.SIGTERM)
    (status, _, err), (other, *_) = hosts.wait()
    assert (status, other) == (STOPPED, STOPPED), err
    alone = tiny_run.start("run_crnas", *flags, num_devices=8)
    out, err = alone.communicate()
    assert alone.returncode == 0, err
    assert "returned: the " in out
    return workdir


def test_the_procedure_on_two_processes_keeps_the_contract(run):
    """Same result as on one process; the primary wrote all but the other's log."""
    result = check_result(run)
    assert len({tuple(result[name]["arch"]["depths"]) for name in ("baseline", "searched")}) == 2
    assert [len(result[name]["seeds"]) for name in ("baseline", "searched")] == [2, 2]
    assert len(scored(run)) > 10
    # Made while the other process waited.
    assert all((run / name).exists() for name in ("report.html", "baseline/test/errors.json"))
    assert json.loads((run / "baseline" / "receptive_fields.json").read_text())["fields"]
    assert result["baseline"]["ci95"]["AP"]
    log = (run / "logs" / "host-1.txt").read_text()
    assert "stage_supernet: step 2/2" in log
    assert "Traceback" not in log


def test_predict_on_two_processes(run, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(5):
        pixels = rng.integers(0, 255, (64, 48 + 8 * number, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    outputs = [tmp_path / "joint.json", tmp_path / "alone.json"]
    flags = [f"--detector={run / 'returned'}", f"--images={photos}", "--score=0.0"]
    assert "in 5 images" in Hosts.run("predict", *flags, f"--output={outputs[0]}")
    alone = tiny_run.start("predict", *flags, f"--output={outputs[1]}", num_devices=1)
    assert alone.communicate() is not None
    joint, expected = (json.loads(file.read_text()) for file in outputs)
    assert joint["images"] == expected["images"]
    scores = [[row["score"] for row in result["annotations"]] for result in (joint, expected)]
    np.testing.assert_allclose(*scores, atol=1e-5)


@pytest.fixture(scope="module")
def agreement(shared_data, tmp_path_factory):
    """Return what one device, eight, and two processes of four computed from the same weights."""
    folder = tmp_path_factory.mktemp("agreement")
    photographs = shared_data / "bccd"
    files = {}
    for count in (8, 64):
        content = json.loads((photographs / "train.json").read_text())
        ids = sorted(image["id"] for image in content["images"])[:count]
        content["images"] = [image for image in content["images"] if image["id"] in ids]
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] in ids]
        files[count] = str(folder / f"{count}.json")
        pathlib.Path(files[count]).write_text(json.dumps(content))
    fields = {"images": str(photographs / "images"), "few": files[8], "many": files[64]}
    fields |= {"weights": str(folder / "weights"), "num_devices": 1}

    def start(name, devices_here, flags, **more):
        flags = f"{flags} --xla_force_host_platform_device_count={devices_here}"
        content = {**fields, "output": str(folder / f"{name}.npz"), "do": "compare", **more}
        return subprocess.Popen(
            [sys.executable, "tests/parallel/agreement.py", json.dumps(content)],
            cwd=ROOT,
            env={**ENVIRONMENT, "XLA_FLAGS": flags},
        )

    quick = ENVIRONMENT["XLA_FLAGS"]
    well = "--xla_backend_optimization_level=3"
    assert start("train", 1, well, do="train").wait() == 0
    for name, number in (("one", 1), ("eight", 8)):
        assert start(name, 8, quick, num_devices=number).wait() == 0
    # The two processes read the same photographs as records.
    records = str(folder / "records")
    source = CocoSource(photographs / "images", files[64])
    prepare(detection_data_set("bccd", {"train": source}), records, 2**20)
    cluster = {"coordinator": f"localhost:{tiny_run.free_port()}", "count": 2}
    processes = [
        start("two", 4, quick, num_devices=8, cluster={**cluster, "index": index}, records=records)
        for index in range(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    return {name: np.load(folder / f"{name}.npz") for name in ("one", "eight", "two")}


@pytest.mark.parametrize("name", ["eight", "two"])
def test_devices_and_hosts_compute_the_same(agreement, name):
    one, other = agreement["one"], agreement[name]
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-4)
    np.testing.assert_allclose(other["leaves"], one["leaves"], atol=1e-4)
    np.testing.assert_array_equal(other["ids"], one["ids"])
    np.testing.assert_array_equal(other["sums"], one["sums"])
    np.testing.assert_array_equal(other["paths"], one["paths"])
    assert float(other["mean_loss"]) == pytest.approx(float(one["mean_loss"]), rel=0.02)
    assert min(one["scores"]) > 0.2
    np.testing.assert_allclose(other["scores"], one["scores"], atol=1e-3)
