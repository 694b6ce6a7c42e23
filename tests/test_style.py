import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# First words of question clauses and fragments: a docstring begins with a verb or a noun phrase.
NOT_FIRST = {"As", "Gives", "How", "What", "Where", "Whether", "Which", "Who", "Why"}


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff(command):
    result = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("package", ["kseg", "pipelines", "scripts", "tests"])
def test_docstrings_begin_with_a_verb_or_a_noun_phrase(package):
    clauses = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                words = (ast.get_docstring(node) or "-").split()
                if words and words[0] in NOT_FIRST:
                    clauses.append(f"{path}: {' '.join(words[:8])}")
    assert not clauses, "\n".join(clauses)
