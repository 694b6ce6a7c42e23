"""What every script does the same way: quiet start, one clear line for the user's mistakes."""

import os
import re
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def run(main):
    """Calls `main()`; a mistake of the user's is one line on stderr and exit code 2."""
    from kseg.errors import UserError

    try:
        sys.exit(main())
    except UserError as error:
        _stop(error)
    except ValueError as error:
        # Imported only now, because it brings TensorFlow: a typo is reported at once.
        from pipelines.errors import DataError

        if not isinstance(error, DataError):
            raise
        _stop(error)
    except Exception as error:
        # From deep in a graph: tf.data cannot raise an error of ours.
        corrupt = re.search(r"The shard \S+ is corrupt or gone, at byte \d+", str(error))
        if corrupt is None:
            raise
        _stop(f"{corrupt[0]}. Prepare the data again, with --overwrite")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _stop(error):
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
