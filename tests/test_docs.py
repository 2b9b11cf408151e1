"""Links of README and docs lead to files and headings that are there."""

import re

import pytest
from helpers import ROOT

FILES = [ROOT / name for name in ("README.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


def _anchors(file):
    """Return the names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_links_lead_somewhere(file):
    text = re.sub(r"^```.*?^```", "", file.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (file.parent / name).resolve() if name else file
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in _anchors(target), link
