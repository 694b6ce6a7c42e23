"""MkDocs hooks: pages from outside docs/, the reference of public names, and formulas.

MkDocs calls the functions named `on_...`. Pages are written for a reader of the repository; here
their links to files outside docs/ become links of the site, and formulas become MathML, which
browsers draw without a script.
"""

import pathlib
import posixpath
import re

import latex2mathml.converter
from mkdocs.structure.files import File

import kseg

ROOT = pathlib.Path(__file__).parents[2]
# Pages of the site that are files outside docs/.
FURTHER = {
    "start.md": "README.md",
    "configs.md": "configs/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changes.md": "CHANGELOG.md",
}
GROUPS = {
    "Commands as functions": ("kseg.commands", "kseg.serving"),
    "Networks and weights": ("kseg.backbones", "kseg.segmenters", "kseg.weights"),
    "Contrastive objectives": ("kseg.contrast",),
    "Losses on logits": ("kseg.losses",),
    "Training": ("kseg.training", "kseg.runs", "kseg.config"),
    "Scores": ("kseg.evaluation", "kseg.metrics"),
    "Errors": ("kseg.errors",),
}


def on_files(files, config):
    """Adds the pages that are not in docs/."""
    for name, source in FURTHER.items():
        content = (ROOT / source).read_text()
        files.append(File.generated(config, name, content=content))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Makes links and formulas those of the site."""
    source = FURTHER.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    pages = {path: name for name, path in FURTHER.items()}

    def link(match):
        text, target, anchor = match.groups("")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in pages:
            return f"[{text}]({pages[path]}{anchor})"
        if path.startswith("docs/"):
            return f"[{text}]({path.removeprefix('docs/')}{anchor})"
        return text if text.startswith("`") else f"{text} (`{path}`)"  # A file of the repository.

    parts = re.split(
        r"(^ *```.*?^ *```$|`[^`\n]+`(?!\]\())", markdown, flags=re.DOTALL | re.MULTILINE
    )
    for i in range(0, len(parts), 2):
        text = re.sub(r"\[([^\]]+)\]\((?!https?://|#)([^)#\s]+)(#[^)\s]*)?\)", link, parts[i])
        text = re.sub(r"\[\[(\w+)\]\]", r"[\\[\1\\]][\1]", text)
        text = re.sub(r"\$\$(.+?)\$\$", _formula("block"), text, flags=re.DOTALL)
        parts[i] = re.sub(r"\$([^$\n]+(?:\n[^$\n]+)?)\$", _formula("inline"), text)
    return "".join(parts)


def reference():
    """Returns the page of all public names, by subject."""
    homes = {name: getattr(kseg, name) for name in kseg.__all__}
    lines = ["# Reference", "", "Every name is an attribute of `kseg`.", ""]
    for title, rooms in GROUPS.items():
        lines += [f"## {title}", ""]
        for name in [name for name, home in homes.items() if home.__module__.startswith(rooms)]:
            home = homes.pop(name)
            lines += [f"::: {home.__module__}.{home.__qualname__}", "    options:"]
            lines += [f"      heading: kseg.{name}", ""]
    if homes:
        raise ValueError(f"Public names without a group in docs/site/hooks.py: {sorted(homes)}")
    return "\n".join(lines)


def _formula(display):
    def convert(match):
        mathml = latex2mathml.converter.convert(match.group(1).strip(), display=display)
        return f"\n\n{mathml}\n\n" if display == "block" else mathml

    return convert
