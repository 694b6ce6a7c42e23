import numpy as np
from keras import ops

from kseg.contrast.log_sum_exp import NO_NEGATIVE, log_of_total


def test_a_row_with_negatives_and_one_without():
    s = np.array([2.0, 3.0, 5.0], "float32")
    total = np.array([np.exp(s - 5.0).sum(), 0.0], "float32")
    log_sum, divisor = log_of_total(np.array([5.0, NO_NEGATIVE], "float32"), total)
    np.testing.assert_allclose(log_sum[0], np.log(np.exp(s).sum()), rtol=1e-6)
    np.testing.assert_array_equal(divisor, [total[0], 1.0])
    for function in (ops.exp, ops.softplus):  # Also of a similarity's distance to it.
        assert float(function(log_sum[1] - 10.0)) == 0.0
