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
        fault = r"The shard \S+ is corrupt, gone or another one, at byte \d+ \(image \d+\)"
        faults = list(dict.fromkeys(re.findall(fault, str(error))))
        if not faults:
            raise
        limit = re.search(r"These are more than data\.max_errors, \d+", str(error))
        _stop(
            ". ".join(
                [
                    *faults,
                    *([limit[0]] if limit else []),
                    "Prepare the data again, with --overwrite",
                ]
            )
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def check_classes(names, manifest):
    """Refuses data whose classes are not those of the model, in the same order."""
    from kseg.errors import UserError

    found = manifest.class_names
    if len(names) != len(found):
        raise UserError(
            f"The data must have the {len(names)} classes of the model. {manifest.folder} has "
            f"{len(found)}. Use --data with the data set that the model was trained on"
        )
    for number, (name, other) in enumerate(zip(names, found, strict=True)):
        if name != other:
            raise UserError(
                f"The data must have the classes of the model. Class {number} is {name!r} in the "
                f"model and {other!r} in {manifest.folder}"
            )


def _stop(error):
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
