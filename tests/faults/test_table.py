"""The table of faults names tests that exist."""

import ast
from pathlib import Path

from tests.faults.table import FAULTS, markdown

TESTS = Path(__file__).parents[1]


def defined(path):
    return {
        node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)
    }


def test_every_fault_names_tests_that_exist():
    for fault in FAULTS:
        assert fault.tests
        for test in fault.tests:
            path, name = test.split("::")
            assert name in defined(TESTS / path), test


def test_the_page_of_runs_has_the_table():
    assert markdown() in (TESTS.parent / "adabatch_jax/runs/README.md").read_text()
