"""What every script does the same way: quiet start, one clear line for the user's mistakes."""

import os
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
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _stop(error):
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
