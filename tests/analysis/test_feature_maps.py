import numpy as np

from kseg.analysis.feature_maps import principal_colors


def example(dim, seed=0):
    """Maps with decreasing variances along directions that are not axes."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    return [
        ((rng.normal(size=(*size, dim)) * 0.5 ** np.arange(dim)) @ turn).astype("float32")
        for size in ((9, 7), (5, 11))
    ]


def test_colors_are_the_principal_components():
    maps = example(6)
    colors = principal_colors(maps)
    assert [c.shape for c in colors] == [(9, 7, 3), (5, 11, 3)]
    rows = np.concatenate([m.reshape(-1, 6) for m in maps]).astype("float64")
    rows -= rows.mean(axis=0)
    axes = np.linalg.svd(rows, full_matrices=False)[2][:3]
    result = np.concatenate([c.reshape(-1, 3) for c in colors]).astype(float)
    for i, axis in enumerate(axes):
        axis = axis * np.sign(axis[np.abs(axis).argmax()])
        component = rows @ axis
        low, high = np.percentile(component, [1, 99])
        expected = 255 * np.clip((component - low) / (high - low), 0, 1)
        np.testing.assert_allclose(result[:, i], expected, atol=1)


def test_the_sign_does_not_depend_on_the_order():
    first, second = example(5)
    colors = principal_colors([first, second])
    swapped = principal_colors([second, first])
    np.testing.assert_allclose(colors[0].astype(int), swapped[1], atol=1)


def test_few_channels_and_none_that_vary():
    colors = principal_colors(example(2))
    assert (colors[0][..., 2] == 0).all()
    assert colors[0][..., :2].max() == 255
    assert principal_colors([np.full((3, 4, 5), 0.1, "float32")])[0].max() == 0
