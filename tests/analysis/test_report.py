"""The table of a run: the verdict first."""

import copy

from crnas_jax.analysis import report

ROW = {"flops": 1e9, "params": 2e6, "AP": 0.3, "AP50": 0.6, "AP75": 0.2, "seeds": [{}, {}]}
ARCH = {"depths": [2, 2, 2, 2], "dilations": [1] * 8}
RESULT = {
    "decision": {
        "network": "searched",
        "challenger": "searched",
        "probability": 0.91,
        "difference": 0.02,
        "ci95": [-0.01, 0.05],
        "reason": "on val it is better than the baseline",
    },
    "baseline": {**ROW, "arch": ARCH},
    "stage_only": {**ROW, "arch": ARCH, "difference": {"AP": -0.02, "ci95": [-0.03, -0.01]}},
    "searched": {**ROW, "arch": ARCH, "difference": {"AP": 0.02, "ci95": [0.01, 0.03]}},
}


def test_the_verdict_comes_first_and_every_network_has_its_difference():
    lines = report.table(RESULT).splitlines()
    assert lines[0] == "returned: the found network; on val it is better than the baseline"
    assert "found minus baseline: +2.0 [-1.0, +5.0] not distinguishable" in lines[1]
    assert "optimistic" in lines[1]
    rows = {line.split()[0]: line for line in lines[3:6]}
    assert "[2, 2, 2, 2]" in rows["baseline"]
    assert "better" not in rows["baseline"]
    assert rows["stage-only"].endswith("-2.0 [-3.0, -1.0] worse")
    assert rows["found"].endswith("+2.0 [+1.0, +3.0] better")
    assert lines[-1] == "intervals are over test images and the 2 seeds of each"


def test_the_papers_procedure_has_no_evidence_on_val():
    result = copy.deepcopy(RESULT)
    del result["stage_only"]
    result["decision"] |= dict.fromkeys(("probability", "difference", "ci95"))
    result["baseline"]["seeds"] = [{}]
    lines = report.table(result).splitlines()
    assert not any("on val, " in line for line in lines)
    assert lines[-1] == "intervals are over test images"


def test_networks_that_detect_nothing_are_named():
    result = copy.deepcopy(RESULT)
    for network in ("baseline", "stage_only", "searched"):
        result[network]["AP"] = None
    assert "no network has learned to detect" in report.table(result)


def test_dilations_of_a_scale_permuted_network_are_those_of_its_blocks():
    """Where all are 1 its description has none."""
    blocks = {"blocks": [{}, {}, {}]}
    for arch, listed in ((blocks, "[1, 1, 1]"), ({**blocks, "dilations": [1, 2, 1]}, "[1, 2, 1]")):
        row = {**ROW, "arch": arch, "score": 0.2, "evaluated": 7, "image_passes": 9}
        assert f"found dilations {listed}: AP 20.0" in report.search("operation", row)
        result = {"decision": RESULT["decision"], "baseline": {**ROW, "arch": blocks}}
        result["searched"] = {**row, "difference": RESULT["searched"]["difference"]}
        text = report.table(result)
        assert f"dilations of the found network: {listed}" in text
        assert "dilations" not in report.table({**result, "architecture_search": {}})
