"""The commands: flags, console output and exit codes. The only room that imports `pipelines`."""
