"""An architecture search in report, status and export: from the files of a working folder."""

import json
import math

import pytest
from helpers import four_blocks

from configs import search_spinenet
from crnas_jax import arch as archs
from crnas_jax.analysis import candidate_networks, candidates, status
from crnas_jax.analysis.html import architectures, page
from crnas_jax.analysis.plots import scores_in_order
from crnas_jax.analysis.record import Record
from crnas_jax.arch.graphs import canonical, graph_code, with_graph
from crnas_jax.errors import UserError
from crnas_jax.export.package import write_table
from crnas_jax.runtime.files import write_json
from crnas_jax.runtime.workdir import FORMAT
from crnas_jax.settings.fields import config_of

BASE = four_blocks()


def _graphs(count):
    """Return codes of different graphs: the kinds of blocks count in binary."""
    graphs = []
    for number in range(count):
        code = list(graph_code(BASE))
        for place in range(len(BASE.blocks)):
            code[5 * place + 1] = number >> place & 1
        graphs.append(graph_code(canonical(with_graph(BASE, tuple(code)))))
    assert len(set(graphs)) == count
    return graphs


@pytest.fixture
def folder(tmp_path):
    """Write a search of six proposals: two are one network, one failed, one has no score."""
    config = search_spinenet.get_config("quick")
    table = tmp_path / "four.json"
    table.write_text(BASE.to_json())
    with config.unlocked():
        config.baseline = str(table)
    path = tmp_path / "run"
    write_json(path / "config.json", {"format": FORMAT, "config": config.to_dict(), "data": {}})
    step = path / "architecture_search"
    write_json(step / "key.json", {"architecture_search": {}})
    write_json(step / "journal.json", {"candidates": "now"})
    graphs = _graphs(5)
    values = [0.1, 0.3, 0.0, 0.2]
    rows = [
        {
            **{"format": 2, "search": "candidates", "config": key, "code": list(graph)},
            **{"score": values[place], "ci95": [values[place]] * 2, "images": 8, "batches": 0},
            **{"candidate": f"name{place}", "attempt": "2", "seconds": 61.0},
            "flops": 1e9 + place,
            **({"failure": "<b>memory</b>"} if values[place] == 0 else {}),
        }
        for key in ("before", "now")
        for place, graph in enumerate(graphs[: 4 if key == "now" else 1])
    ]
    (path / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [{"key": "another", "graph": [1]}]
    lines += [{"key": "k", "graph": list(graphs[place])} for place in (0, 1, 1, 2, 3, 4)]
    proposals = "".join(json.dumps(line) + "\n" for line in lines)
    (step / "proposals.jsonl").write_text(f'{proposals}{{"key": "k", "gra')
    return path


def test_candidates_are_ranked_and_proposals_kept_in_order(folder):
    record, graphs = Record.open(folder), _graphs(5)
    ranked = candidates.candidates(record)
    assert [entry.rank for entry in ranked] == [1, 2, 3, 4]
    assert [entry.name for entry in ranked] == ["name1", "name3", "name0", "name2"]
    assert ranked[-1].failure == "<b>memory</b>"
    assert candidates.proposed_graphs(record) == [graphs[place] for place in (0, 1, 1, 2, 3, 4)]
    network = candidate_networks.network_of(record, ranked[0])
    assert network.blocks == with_graph(BASE, graphs[1]).blocks
    assert network.width_scale == BASE.width_scale


def test_the_page_shows_scores_best_networks_and_failures(folder):
    record = Record.open(folder)
    content = page.page(record, config_of(record.config))
    section = content[content.index('id="candidates"') :]
    assert section.count("<svg") >= 2 + 4
    assert "Scores in the order of proposals" in section
    assert "Score over multiply-adds" in section
    assert "&lt;b&gt;memory" in section
    assert "<b>memory" not in content
    in_order, over_cost = architectures.score_charts(
        record, config_of(record.config), candidates.candidates(record)
    )
    proposed, best = in_order.series
    assert proposed.keys == ("name0", "name1", "name1", "name2", "name3", "")
    assert math.isnan(proposed.y[-1])
    assert list(best.y) == pytest.approx([10, 30, 30, 30, 30, 30])
    assert over_cost.series[-1].keys == ("name0",)  # the seed network, marked


def test_status_says_what_is_waited_for(folder):
    progress = {
        **{"time": "2026-01-01", "name": "architecture_search", "unit": "candidate"},
        **{"done": 4, "total": 6, "seconds_left": 60},
        "note": "2 running, 1 not begun, waits for name4",
    }
    write_json(folder / "progress.json", progress)
    text = status.text(Record.open(folder))
    assert "candidate 4/6, 1 min 0 s left, 2 running, 1 not begun, waits for name4" in text
    assert "4 candidates scored, 1 of them 0 for a failure; the best, name1: AP 30.0" in text


def test_any_candidate_is_exported_by_rank(folder, tmp_path):
    assert candidate_networks.find_candidate(folder, 2)[0] == ""  # its weights were not kept
    attempt = folder / "candidates" / "name1" / "attempts" / "2"
    write_json(attempt / "detector.json", {})
    name, network = candidate_networks.find_candidate(folder, 1)
    assert name == "candidates/name1/attempts/2"
    write_table(tmp_path / "found.json", network)
    assert archs.read((tmp_path / "found.json").read_text()) == network
    with pytest.raises(UserError, match="exists already"):
        write_table(tmp_path / "found.json", network)
    with pytest.raises(UserError, match=r"no \.json file"):
        write_table(tmp_path / "found", network)
    with pytest.raises(UserError, match="4 candidates are scored"):
        candidate_networks.find_candidate(folder, 5)


def test_scores_in_order_have_gaps():
    chart = scores_in_order([math.nan, 0.1, math.nan, 0.3], ["", "a", "", "b"], "AP")
    assert math.isnan(chart.series[1].y[0])
    assert list(chart.series[1].y[1:]) == pytest.approx([10, 10, 30])
