"""A cache for large results that one thread at a time uses several times in a row."""

import collections
import functools
import threading


def cached_by_thread(size):
    """Makes a function keep its last results, separately in every thread.

    Threads that share one cache evict each other's results, so that each is computed again and
    again.

    Args:
        size: int > 0, results kept by a thread.

    Returns:
        A decorator for functions of hashable positional arguments.
    """

    def decorate(function):
        local = threading.local()

        @functools.wraps(function)
        def cached(*arguments):
            if not hasattr(local, "results"):
                local.results = collections.OrderedDict()
            results = local.results
            if arguments not in results:
                result = function(*arguments)
                while len(results) >= size:
                    results.popitem(last=False)
                results[arguments] = result
            results.move_to_end(arguments)
            return results[arguments]

        return cached

    return decorate
