"""Every row of docs/inputs.md, run as a user runs it: by the command, in this process."""

import re

import pytest
from helpers import ROOT
from inputs import (  # noqa: F401
    coco_files,
    coco_objects,
    detections,
    exports,
    hostile_files,
    image_files,
    making,
    orientations,
    prediction,
    records,
    voc,
    weights,
    workdirs,
)

from crnas_jax import cli
from crnas_jax.runtime.ownership import TOKEN

DOCUMENT = ROOT / "docs" / "inputs.md"
CASES = making.CASES
NOTES = (TOKEN, "invocations.jsonl", "plan.json", "data.json", "progress.json")


def _row(name, case):
    happens = f"refused: `{case.refused}`" if case.refused else case.happens
    report = f"[report]({case.report})" if case.report else ""
    return f"| {case.input} | {happens} | {case.test or name} | {report} |"


def test_tests_elsewhere_are_there():
    for case in CASES.values():
        file, _, test = case.test.partition("::")
        assert not case.test or f"def {test}(" in (ROOT / file).read_text()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.test])
def test_what_people_bring(tmp_path, capsys, name):
    case, folder = CASES[name], tmp_path / "data"
    flags = case.make(folder) or []
    before = _tree(tmp_path)
    if case.command == "plan":
        flags = ["--config=configs/bccd.py", f"--config.data.folder={folder}", *flags]
        flags.append(f"--workdir={tmp_path / 'run'}")
    status = cli.main([case.command, *flags, *case.flags])
    output, errors = capsys.readouterr()
    if case.refused:
        assert status == 2, output
        (line,) = errors.strip().splitlines()
        assert line.startswith("error: ")
        assert case.refused in line
        after = _tree(tmp_path)
        assert before.items() <= after.items()  # nothing is overwritten
        assert case.is_late or after.keys() == before.keys()
        return
    assert status == 0, errors
    assert ("left out" in errors) == case.is_noted
    assert case.is_noted or errors == ""
    assert case.says in output
    if case.command == "plan":
        assert not (tmp_path / "run").exists()
    if case.check:
        case.check(folder)


def _tree(folder):
    """Return the files, but for those that tell of the latest command, with their times."""
    files = (path for path in folder.rglob("*") if not path.is_dir() and path.name not in NOTES)
    return {path: path.stat().st_mtime_ns for path in files}


def test_the_documentation_has_a_row_for_each():
    rows = [line for line in DOCUMENT.read_text().splitlines() if re.match(r"\| .* \| .* \|", line)]
    assert [row for row in rows if not row.startswith(("| input", "|---"))] == [
        _row(name, case) for name, case in CASES.items()
    ]
    assert len(CASES) >= 60


if __name__ == "__main__":  # prints the rows
    print(
        "\n".join(_row(name, case) for name, case in CASES.items()),
    )
