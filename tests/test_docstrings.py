"""Every public class has an example in its docstring, and every example there is right."""

import doctest
import inspect

import pytest

import kseg

CLASSES = [name for name in kseg.__all__ if inspect.isclass(getattr(kseg, name))]


@pytest.mark.parametrize("name", CLASSES)
def test_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = getattr(kseg, name)
    tests = doctest.DocTestFinder(recurse=False).find(value, name, globs={})
    assert any(test.examples for test in tests), "no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    output = []
    for test in tests:
        runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)
