"""Options of the data sets' `find` functions."""

import inspect

from pipelines.datasets.annotated import OPTIONS


def own_options(find, positional=1):
    """Lists the options of a data set.

    Args:
        find: function; if it takes any keywords, these are the options of all importers.
        positional: int, number of its leading parameters that are no options.

    Returns:
        list of str.
    """
    names = []
    for parameter in list(inspect.signature(find).parameters.values())[positional:]:
        names += OPTIONS if parameter.kind == parameter.VAR_KEYWORD else [parameter.name]
    return names
