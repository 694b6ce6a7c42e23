"""Error messages for configs: one line for each broken rule of the schema."""

import difflib
import json
import re
from typing import Any

from kseg.config.schema import Experiment, Section


def describe(error, values, section=None) -> str:
    """Describes the rules broken by a dictionary, on one line.

    Args:
        error: `pydantic.ValidationError`.
        values: the dictionary.
        section: `Section` that it was checked against; None: `Experiment`.
    """
    groups = _by_key(error.errors(), values)
    return "; ".join(_describe(items, values, section or Experiment) for items in groups)


def _by_key(errors, values) -> list[list[dict[str, Any]]]:
    """Groups errors by key, dropping those of a key if there are errors at keys nested in it."""
    groups = {}
    for item in errors:
        groups.setdefault(_visible(item, values), []).append(item)
    return [
        items
        for key, items in groups.items()
        if not any(len(other) > len(key) and other[: len(key)] == key for other in groups)
    ]


def _visible(item, values) -> tuple[str, ...]:
    """Finds the key of an error, without the union members in pydantic's path."""
    visible, node = [], values
    for part in map(str, item["loc"]):
        if isinstance(node, dict) and part in node:
            node = node[part]
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            continue
        visible.append(part)
    if item["type"] == "missing":
        visible.append(str(item["loc"][-1]))
    return tuple(visible)


def _describe(items: list[dict[str, Any]], values, section) -> str:
    item, place = items[0], [str(part) for part in items[0]["loc"]]
    visible = _visible(item, values)
    key = ".".join(visible)
    if item["type"] == "extra_forbidden":
        known = _known_keys(place[:-1], section)
        near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
        hint = f" Did you mean `{'.'.join([*visible[:-1], *near])}`?" if near else ""
        return f"unknown key `{key}`.{hint} Known keys here: {', '.join(known)}"
    if item["type"] == "missing":
        if isinstance(item["loc"][-1], int):
            section_key = ".".join(visible[:-1])
            return f"`{section_key}` has too few values. Received: {shown(item['input'])}"
        return f"key `{key}` is missing"
    if item["type"] == "union_tag_not_found":
        return f"`{key}` needs a `name`"
    if item["type"] == "union_tag_invalid":
        known = [tag.strip(" '") for tag in item["ctx"]["expected_tags"].split(",")]
        near = difflib.get_close_matches(item["ctx"]["tag"], known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return (
            f"`{key}.name` is unknown.{hint} Choose from {known}. Received: {item['ctx']['tag']!r}"
        )
    message = ", or: ".join(map(_rule, items))
    received = "" if item["type"] == "value_error" else f". Received: {shown(item['input'])}"
    return f"`{key}`: {message}{received}" if key else f"{message}{received}"


def _rule(item: dict[str, Any]) -> str:
    """States the rule that a value breaks, with JSON's words instead of pydantic's."""
    received = item["input"]
    if item["type"] in ("tuple_type", "list_type"):
        is_number = isinstance(received, int | float) and not isinstance(received, bool)
        pair = item["type"] == "tuple_type" and is_number
        return "must be a list" + (f", such as {shown([received] * 2)}" if pair else "")
    if item["type"] == "model_attributes_type":  # One of several sections, told apart by `name`.
        name = received if isinstance(received, str) and len(received) <= 40 else "..."
        return f"must be an object, such as {json.dumps({'name': name})}"
    if item["type"] == "model_type":
        return "must be an object, { ... }"
    message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return re.sub(r", unable to (parse|interpret) .*", "", message)


def _known_keys(place, section) -> list[str]:
    """Lists the keys of the section at a pydantic error path (which names union members)."""
    sections = [section]
    for part in place:
        found = []
        for section in sections:
            if part in section.model_fields:
                found += _sections_in(section.model_fields[part].annotation)
            else:  # A list position or the tag of a union member.
                found.append(section)
        sections = [s for s in found if _tag(s) == part] or found
    return sorted({name for s in sections for name in s.model_fields if name != "schema_"})


def _sections_in(annotation) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [s for part in getattr(annotation, "__args__", ()) for s in _sections_in(part)]


def _tag(section) -> str | None:
    field = section.model_fields.get("name")
    arguments = getattr(field.annotation, "__args__", (None,)) if field else (None,)
    return arguments[0] or ("custom" if field else None)


def shown(value):
    """Formats a value for a message: on one line, shortened."""
    text = "a number of thousands of digits" if _is_huge(value) else ascii(value)
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"


def _is_huge(value):
    return isinstance(value, int) and value.bit_length() > 10_000
