"""Commands: flags, console output and exit codes. The only package that imports `pipelines`."""
