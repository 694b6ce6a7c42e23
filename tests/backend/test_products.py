import numpy as np
import pytest

from kseg.backend.products import matmul


@pytest.mark.parametrize("leading", [(), (2, 3)])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_product_of_transposed_operands(leading, transpose_a, transpose_b):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((*leading, 4, 5)).astype("float32")
    b = rng.standard_normal((*leading, 5, 6)).astype("float32")
    found = matmul(
        np.swapaxes(a, -1, -2) if transpose_a else a,
        np.swapaxes(b, -1, -2) if transpose_b else b,
        transpose_a=transpose_a,
        transpose_b=transpose_b,
    )
    np.testing.assert_allclose(found, a @ b, rtol=1e-5, atol=1e-6)
