"""Old names of config fields end in one line with the present name, and nothing is written."""

import re

import pytest
from helpers import run_commands

from crnas_jax.settings.fields import RENAMED

# Old places of fields, and values they had.
OLD_FIELDS = {
    "data.short": "64",
    "data.long": "64",
    "stage_train.rate_per_image": "0.1",
    "detector_train.drops": "(0.5,)",
    "pretrain.clip": "1.0",
    "initial.baseline": "'none'",
    "search.keep": "3",
    "search.chunk": "3",
}
_CONFIG = """from configs import quickstart
def get_config():
  config = quickstart.get_config()
  config.{field} = {value}
  return config
"""
CASES = [(kind, field) for kind in ("flag", "file") for field in OLD_FIELDS]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Return the outcome of every case, and the folders that were written."""
    tmp, commands = tmp_path_factory.mktemp("renamed"), []
    for index, (kind, field) in enumerate(CASES):
        file, value = "configs/quickstart.py", OLD_FIELDS[field]
        flags = [f"--config.{field}={value}"] if kind == "flag" else []
        if kind == "file":
            file = tmp / f"{field.replace('.', '_')}.py"
            file.write_text(_CONFIG.format(field=field, value=value))
        workdir = f"--workdir={tmp}/run{index}"
        commands.append(["scripts/run_crnas.py", f"--config={file}", workdir, *flags])
    return dict(zip(CASES, run_commands(commands), strict=True)), list(tmp.glob("run*"))


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_an_old_name_ends_in_a_line_with_the_new_one(outcomes, case):
    kind, field = case
    results, written = outcomes
    assert results[case]["status"] == 2, results[case]["stderr"]
    (line,) = results[case]["stderr"].strip().splitlines()
    old = next(name for name in field.split(".") if name in RENAMED)
    where = rf"{field.replace('.', '_')}\.py: line 4" if kind == "file" else "unknown field"
    assert re.search(f"{where}: '{old}' is now '{RENAMED[old]}'", line), line
    assert not written


def test_every_old_name_is_a_case():
    assert {name for field in OLD_FIELDS for name in field.split(".")} >= set(RENAMED)
