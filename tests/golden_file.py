"""Outputs of published PyTorch models, with their weights: what ours are held to."""

import json
import pathlib

import keras
import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden"


class Golden:
    """One file. Every tolerance is 20 x the reference's own rounding, at least 2e-5 x its range.

    Attributes:
        arrays: dict from the names in the file to arrays.
        meta: dict, how the model was made.
        state: dict from PyTorch's parameter names to arrays.
        cases: list of prefixes, `""`, `"case1/"` and so on, one for each input.
    """

    def __init__(self, name):
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            self.arrays = dict(arrays)
        self.meta = json.loads(str(self.arrays["meta_json"]))
        self.state = {
            name[3:]: array for name, array in self.arrays.items() if name.startswith("sd/")
        }
        self.cases = sorted(name[:-1] for name in self.arrays if name == "x" or name.endswith("/x"))

    def array(self, key):
        """A map, brought from (batch, channels, height, width) to channels last."""
        return self.arrays[key].transpose(0, 2, 3, 1)

    def compare(self, case, model, names):
        """Runs the model on a case's input and checks every output `names[ours] = theirs`."""
        outputs = model(self.array(f"{case}x"), training=False)
        for ours, theirs in names.items():
            self.check(f"{case}out/{theirs}", outputs[ours])

    def check(self, key, output):
        """Checks one output, channels last."""
        expected = self.array(key)
        rounding = self.meta["outputs"][key]["f32_vs_f64"]
        tolerance = max(20 * rounding, 2e-5 * np.abs(expected).max())
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(output), expected, rtol=0, atol=tolerance, err_msg=key
        )
