"""The command `crnas-jax`: help, flags, the same numbers wherever they are printed, the wheel."""

import importlib.util
import json
import re
import subprocess
import sys

import pytest
from helpers import ENVIRONMENT, ROOT
from inputs import workdirs

from crnas_jax import cli

QUICKSTART = "--config=configs/quickstart.py"


def _run(capsys, *arguments):
    status = cli.main(list(arguments))
    return status, *capsys.readouterr()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_lists_the_flags_of_a_command_with_an_example(capsys, name):
    status, output, errors = _run(capsys, name, "--help")
    assert (status, errors) == (0, "")
    assert f"crnas-jax {name} --" in output
    command = cli.load(name)
    for flag in re.findall(r"--(\w+)", command.example):
        assert f"--{flag}" in output.partition("Flags:")[2]
    if command.has_config:
        assert "--config.seed=1" in output
    assert "--verbosity" not in output  # flags of libraries


def test_without_a_command_they_are_listed(capsys):
    for arguments in ([], ["--help"]):
        status, output, _ = _run(capsys, *arguments)
        assert status == 0
        assert all(f"  {name} " in output for name in cli.COMMANDS)


def test_every_script_is_a_command():
    """Scripts hold no code of their own; `model_zoo.py` prints a page of the documentation."""
    names = set()
    for path in (ROOT / "scripts").glob("*.py"):
        calls = re.findall(r'cli\.script\("([\w-]+)"', path.read_text())
        assert len(calls) == (path.stem != "model_zoo"), path
        names.update(calls)
    assert names <= set(cli.COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flosp"], "flosp: is no command; did you mean flops?"),
        (["predict"], "--detector: missing; --help has an example"),
        (["flops", "--arhc=resnet50"], "Unknown command line flag 'arhc'"),
        (["flops"], "--arch: missing; give --arch, --config or --workdir"),
        (["flops", QUICKSTART, "--size=100x100"], "--size: given beside a config, which says it"),
        (["run", QUICKSTART, "--config.sede=1", "--workdir=w"], "'sede' Did you mean \"seed\""),
        (
            ["run", QUICKSTART, "--config.devices=64", "--workdir=w"],
            "command line: --config.devices: 64 asked for",
        ),
        (["run", QUICKSTART, "--config.widths=(1,2)", "--config.widths=(1,2,3)", "--workdir=w"],
         "--config.widths: (1, 2, 3); give 4 entries"),
        (["run", "--workdir=nowhere"], "nowhere: --workdir: there is no such folder to go on in"),
        (["run", QUICKSTART], "--workdir: missing; name a folder"),
        (["status", "--workdir=nowhere"], "nowhere: --workdir: there is no such folder; name a"),
        (["report", "--workdir=configs"], "--workdir: no run has begun here: no config.json"),
        (["visualize-erf", "--output=w"], "--arch: missing; give --arch or --detector"),
        (["visualize-erf", "--output=w", "--arch=resnet18", "--levels=3,x"], "--levels: 3,x; give"),
        (["visualize-erf", "--output=w", "--arch=resnet18", "--size=9"], "--size: 9; give HEIGHT"),
        (["visualize-erf", "--output=docs", "--arch=resnet18"], "--output: it exists already"),
    ],
)  # fmt: skip
def test_mistakes_in_flags_are_one_line(capsys, arguments, message):
    status, output, errors = _run(capsys, *arguments)
    assert (status, output) == (2, "")
    (line,) = errors.splitlines()
    assert message in line


def test_the_plan_and_the_costs_of_a_config_and_of_a_folder_agree(capsys, tmp_path):
    small = ["--config.data.synthetic.train=4", "--config.data.synthetic.test=4"]
    _, plan, _ = _run(capsys, "plan", QUICKSTART, *small, f"--workdir={tmp_path / 'run'}")
    planned = float(re.search(r"([\d.]+) G multiply-adds", plan)[1])
    _, output, _ = _run(capsys, "flops", QUICKSTART, *small, "--json")
    row = json.loads(output)
    assert round(row["flops"] / 1e9, 2) == planned
    assert row["flops"] == sum(part["flops"] for part in row["parts"].values())
    from configs import quickstart
    from crnas_jax.runtime.files import write_json
    from crnas_jax.runtime.workdir import FORMAT

    config = quickstart.get_config()
    config.data.synthetic.update({"train": 4, "test": 4})
    content = {"format": FORMAT, "config": config.to_dict(), "data": {}}
    write_json(tmp_path / "run" / "config.json", content)
    arch = {
        "family": "resnet_basic",
        "depths": [1, 2, 2, 3],
        "format": 1,
        "widths": [16, 32, 64, 128],
    }
    arch["dilations"] = [1] * 8
    found = {"searched": {"arch": arch}}
    write_json(tmp_path / "run" / "result.json", found)
    _, output, _ = _run(capsys, "flops", f"--workdir={tmp_path / 'run'}", "--json")
    baseline, searched = map(json.loads, output.splitlines())
    assert {**baseline, "arch": row["arch"]} == row
    assert searched["flops"] == pytest.approx(row["flops"], rel=0.02)
    # Before the end of the run there is the search's.
    (tmp_path / "run" / "result.json").unlink()
    write_json(tmp_path / "run" / "operation_search" / "result.json", found["searched"])
    assert _run(capsys, "flops", f"--workdir={tmp_path / 'run'}", "--json")[1] == output


def test_with_json_nothing_but_the_result_is_printed(capsys, tmp_path):
    flags = workdirs.finished(tmp_path)
    status, output, errors = _run(capsys, "train-detector", *flags, "--json")
    assert status == 0
    assert json.loads(output) == {"folder": str(tmp_path / "run" / "baseline")}
    assert "baseline: finished before" in errors


def test_mistakes_in_a_folders_config_are_told_of_its_file(capsys, tmp_path):
    workdirs.finished(tmp_path)
    file = tmp_path / "run" / "config.json"
    content = json.loads(file.read_text())
    content["config"]["detector"]["kind"] = "yolo"
    file.write_text(json.dumps(content))
    status, _, errors = _run(capsys, "evaluate", f"--workdir={tmp_path / 'run'}")
    assert (status, errors.count("\n")) == (2, 1)
    assert errors.startswith(f"error: {file}: detector.kind: 'yolo' is unknown")


@pytest.mark.skipif(
    importlib.util.find_spec("setuptools") is None, reason="setuptools is not installed"
)
def test_configs_are_found_from_an_installed_wheel(tmp_path):
    """The content of a wheel, beside no repository, from any folder."""
    build = ["setup.py", "-q", "build_py", f"--build-lib={tmp_path / 'site'}"]
    subprocess.run([sys.executable, *build], cwd=ROOT, check=True, capture_output=True)
    code = "import sys; from crnas_jax import cli; sys.exit(cli.main(sys.argv[1:]))"
    run = subprocess.run(
        [sys.executable, "-c", code, "flops", "--config=configs/bccd.py:gpu", "--config.seed=1"],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    # Found: it is read, and asks for the data.
    assert (run.returncode, run.stdout) == (2, "")
    assert "shipped/configs/bccd.py:gpu: data.folder: empty" in run.stderr
