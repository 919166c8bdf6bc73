"""``dev/mutate.py``: which mutants it creates."""

from __future__ import annotations

import mutate
import pytest


def changes(source):
    return {(mutant.before, mutant.after) for mutant in mutate.mutants(source)}


@pytest.mark.parametrize(
    ("statement", "mutants"),
    [
        ("return a < 1", {"return a <= 1", "return a >= 1", "return a < 0", "return None"}),
        ("return a and b", {"return a or b", "return a", "return b", "return None"}),
        ("return a - b", {"return a + b", "return None"}),
        ("x = -a", {"x = a"}),
        ("x = not a", {"x = a"}),
        ("x = a['name']", {"x = a['namex']"}),
        ("x = a is None", {"x = a is not None"}),
        ("x = b if a else c", {"x = b if not a else c"}),
        ("a.clear()", {"pass"}),
        ("a.b = c", {"pass"}),
        ("raise error", {"pass"}),
        ("if a:\n        b", {"if not a:"}),
    ],
)
def test_a_statement_is_mutated_in_every_way(statement, mutants):
    before = statement.partition("\n")[0]

    assert changes(f"def f(a, b, c, error):\n    {statement}") == {(before, after) for after in mutants}


@pytest.mark.parametrize(
    "statement",
    [
        '"""What it is for."""',
        "log.warning('%s failed', 1)",
        "x: dict[int, 'a'] = b",
        "import a",
        "x = f'{a + 1} of them'",
        "x = 'some words'",
        "x = StorageError('full', 1)",
        "while True:\n        x = a",
    ],
)
def test_code_read_only_by_people_or_type_checkers_is_not_mutated(statement):
    assert changes(f"def f(a, b):\n    {statement}") == set()


def test_module_constants_and_protocols_are_not_mutated():
    assert changes("LIMIT = 1\nclass Port(Protocol):\n    def read(self, size=1): ...") == set()


def test_every_mutant_changes_one_line_of_the_module():
    source = "def f(a):\n    if a > 1:\n        return a + 1\n    return 0"
    original = mutate.ast.unparse(mutate.ast.parse(source)).splitlines()
    for mutant in mutate.mutants(source):
        lines = mutant.source.splitlines()
        changed = [number for number, pair in enumerate(zip(original, lines, strict=True), 1) if pair[0] != pair[1]]
        assert changed == [mutant.line]
