"""Feature maps as color images, by their principal components."""

import numpy as np


def principal_colors(feature_maps):
    """Maps features to colors: their three principal components are red, green and blue.

    The components are computed over all maps together, so that colors are comparable. The sign of
    a component, which is arbitrary, is chosen so that its largest weight is positive. Each is
    scaled so that its 1st and 99th percentiles are 0 and 255.

    Args:
        feature_maps: list of float arrays `(h, w, dim)`, sizes may differ.

    Returns:
        list of uint8 arrays `(h, w, 3)`; channels without a component are 0.
    """
    dim = feature_maps[0].shape[-1]
    rows = np.concatenate([np.asarray(m, "float64").reshape(-1, dim) for m in feature_maps])
    mean = rows.mean(axis=0)
    variances, vectors = np.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    count = min(3, dim)
    vectors = vectors[:, ::-1][:, :count]  # The greatest variance first.
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(count)]
    components = (rows - mean) @ (vectors * np.sign(largest))
    low, high = np.percentile(components, [1, 99], axis=0)
    # Do not amplify rounding errors of components without variance.
    flat = variances[::-1][:count] <= 1e-12 * max(np.abs(rows).max() ** 2, 1e-300)
    scaled = (components - low) / np.where(flat, 1, np.maximum(high - low, 1e-300))
    colors = np.zeros((len(rows), 3), "uint8")
    colors[:, :count] = (255 * np.clip(np.where(flat, 0, scaled), 0, 1)).round()
    ends = np.cumsum([m.shape[0] * m.shape[1] for m in feature_maps])[:-1]
    parts = np.split(colors, ends)
    return [part.reshape(*m.shape[:2], 3) for part, m in zip(parts, feature_maps, strict=True)]
