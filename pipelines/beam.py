"""Preparation on an Apache Beam runner: each shard is a job of its own. Needs the extra `beam`."""

from pipelines.errors import DataError


def distributor(arguments=()):
    """Creates the `distribute` argument of `pipelines.records.write`.

    All workers must reach the source and the folder of the records by the same paths, and have this
    package installed.

    Args:
        arguments: list of str, options of Beam and its runner, such as `["--runner",
            "DirectRunner", "--direct_num_workers", "4"]`.

    Returns:
        function `(function, jobs)` that calls the function with each job of the list.

    Raises:
        DataError: if Beam is not installed.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise DataError(
            "Apache Beam is not installed. Install it: pip install 'kseg[beam]'"
        ) from None

    def distribute(function, jobs):
        with apache_beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline:
            (
                pipeline
                | "Shards" >> apache_beam.Create(jobs)
                | "Spread" >> apache_beam.Reshuffle()
                | "Write" >> apache_beam.Map(function)
            )

    return distribute
