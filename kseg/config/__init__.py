"""Experiments as JSON files: the schema, loading, and error messages."""

from kseg.config.loading import extend, flatten, load, parse, read_json, with_steps
from kseg.config.loading import load as load_config
from kseg.config.messages import describe
from kseg.config.schema import ConfigError, Experiment, Section, json_schema

__all__ = [
    "ConfigError",
    "Experiment",
    "Section",
    "describe",
    "extend",
    "flatten",
    "json_schema",
    "load",
    "load_config",
    "parse",
    "read_json",
    "with_steps",
]
