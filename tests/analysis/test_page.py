"""The report as text: whole, escaped, small, whatever state the folder is in."""

import html.parser
import json

import pytest
import run_folders

from crnas_jax.analysis.html import page
from crnas_jax.analysis.html.tree import tree
from crnas_jax.analysis.markup import element, name, text
from crnas_jax.analysis.record import Record
from crnas_jax.commands import record as commands
from crnas_jax.errors import UserError
from crnas_jax.settings.fields import config_of

ALWAYS = {"result", "allocations", "data", "time", "origin"}


class _Elements(html.parser.HTMLParser):
    """The elements of a page: their names, ids and addresses."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.ids, self.addresses, self.open = [], [], [], []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        assert not [name for name in attributes if name.startswith("on")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _elements(path):
    record = Record.open(path)
    content = page.page(record, config_of(record.config))
    elements = _Elements(content)
    assert elements.open == []
    assert len(set(elements.ids)) == len(elements.ids)
    return elements, content


@pytest.mark.parametrize(
    ("make", "sections"),
    [
        (run_folders.copy, ALWAYS | {"networks", "blocks", "dilations", "trainings", "errors"}),
        (run_folders.in_third_step, ALWAYS | {"status", "blocks", "trainings"}),
        (run_folders.search_alone, ALWAYS | {"blocks", "trainings"}),
    ],
)
def test_each_state_has_its_sections(tmp_path, make, sections):
    elements, content = _elements(make(tmp_path / "run"))
    assert sections <= set(elements.ids)
    assert ("status" in sections) == ("status" in elements.ids)
    assert len(content) < 1_000_000
    assert all(address.startswith(("data:", "#")) for address in elements.addresses)


def test_a_folder_with_nothing_but_a_config_has_a_report(tmp_path):
    content = json.loads((run_folders.BCCD / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert "result" in _elements(tmp_path)[0].ids


def test_broken_and_torn_files_are_left_out(tmp_path):
    path = run_folders.copy(tmp_path / "run")
    for file in ("result.json", "plan.json", "data.json", "baseline/test/errors.json"):
        (path / file).write_text('{"unended": ')
    with (path / "journal.jsonl").open("a") as file:
        file.write('{"search": "stage", "code": [1')
    elements, content = _elements(path)
    assert {"allocations", "trainings"} <= set(elements.ids)
    assert "unended" not in content


def test_names_are_text(tmp_path):
    plain, _ = _elements(run_folders.copy(tmp_path / "plain"))
    hostile, content = _elements(run_folders.with_hostile_names(tmp_path / "hostile"))
    assert hostile.tags.count("script") == plain.tags.count("script") == 2
    assert not {"img", "b", "i"} & set(hostile.tags)
    for character in "\ud800\x00\x1b":
        assert character not in content
    content.encode()


def test_a_thousand_codes_take_a_megabyte(tmp_path):
    path = run_folders.with_many_codes(tmp_path / "run", 1000)
    _, content = _elements(path)
    assert len(content.encode()) < 1_000_000
    assert content.count("1-1-1-12") > 0


def test_the_result_of_another_config_is_not_shown(tmp_path):
    path = run_folders.copy(tmp_path / "run")
    later = {"finished": "2999-01-01T00:00:00+00:00"}
    run_folders.change(path, "stage_search/result.json", lambda content: content.update(later))
    assert Record.open(path).result is None
    assert "search alone" in _elements(path)[1]


def test_elements_escape_what_they_are_given():
    made = element("p", "<&\"'>", element("b", "x"), None, title='"<', class_="a", hidden=True)
    assert str(made) == (
        '<p title="&#34;&lt;" class="a" hidden>&lt;&amp;&#34;&#39;&gt;<b>x</b></p>'
    )
    assert text("a\x00b\ud800") == "a\ufffdb\ufffd"
    assert len(name("long" * 1000)) < 100


def test_the_tree_follows_a_network_to_its_root():
    scores = {(0,): 0.3, (1,): 0.2, (0, 0): 0.4, (0, 1): 0.5, (1, 0): 0.1, (1, 1): 0.6}
    drawn = str(tree(scores, (1, 3), 2, lambda code: "-".join(map(str, code))))
    assert drawn.count('class="box kept"') == 2 + 2
    assert drawn.count('class="box dropped"') == 2
    assert drawn.count('data-network="0-1 0-0"') == 1  # the root's, best first
    assert "dilations 3 3: AP 60.0, kept" in drawn


def test_commands_name_what_is_wrong(tmp_path):
    for path, problem in ((tmp_path / "a", "no such folder"), (tmp_path, "no config.json")):
        with pytest.raises(UserError, match=problem):
            Record.open(path)
    assert set(commands.COMMANDS) == {"report", "status"}
