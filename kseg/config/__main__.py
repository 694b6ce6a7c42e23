"""Prints the JSON schema of configs: `python -m kseg.config > configs/schema.json`."""

from kseg.config.schema import json_schema

print(json_schema(), end="")
