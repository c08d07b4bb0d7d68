"""SECURITY.md: each promise names tests that are there."""

import re


def test_each_promise_names_its_tests(root):
    rows = [line for line in (root / "SECURITY.md").read_text().splitlines() if line.startswith("| **")]
    assert len(rows) >= 8
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)`", row)
        assert named, row
        assert [name for name in named if not (root / name).is_file()] == []
