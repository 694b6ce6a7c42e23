"""The documentation as a site: built without network, strictly, every link inside it checked."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = dict(os.environ, NO_MKDOCS_2_WARNING="1", PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_link_has_a_page_and_a_heading(site):
    pages = {path.name: path.read_text() for path in site.glob("*.html") if path.name != "404.html"}
    ids = {name: set(re.findall(r' id="?([^" >]+)', text)) for name, text in pages.items()}
    assert "reference.html" in pages and "configs.html" in pages
    for name, text in pages.items():
        for target in re.findall(r'<a [^>]*href="?([^" >]+)', text):
            if target.startswith(("https://", "http://", "mailto:")) or target == ".":
                continue
            page, _, anchor = target.partition("#")
            page = page or name
            assert (site / page).exists(), f"{name}: {target}"
            if anchor and page in ids:
                assert anchor in ids[page], f"{name}: {target}"


def test_formulas_and_names(site):
    losses = (site / "losses.html").read_text()
    assert "<math" in losses and "$$" not in re.sub(r"<code>.*?</code>", "", losses)
    import kseg

    reference = (site / "reference.html").read_text()
    assert all(f"kseg.{name}" in reference for name in kseg.__all__)
