"""Region mutual information loss: binary cross-entropy and the dependence of neighboring pixels."""

from keras import ops

from kseg.backend import replicas
from kseg.backend.gradients import upstream_of
from kseg.backend.loops import scan
from kseg.backend.precision import double_precision
from kseg.losses.cross_entropy import logits_like
from kseg.losses.reduction import global_ratio

# Added to the diagonals of both covariances, sums over the regions, as in the public code.
_DIAGONAL = 5e-4


def rmi_loss(labels, logits, *, region_size=3, downsampling=4, pixel_weight=0.5):
    """Computes binary cross-entropy minus a lower bound of the mutual information of regions.

    With pixel_weight a, sigmoids p and one-hot labels y, both 0 at ignored pixels,
    `L = a * mean_x sum_c BCE(p_xc, y_xc) + (1 - a) * mean_b sum_c log det(M_bc) / (2 d)`.
    In an image b, y and p of a class c are averaged over cells of `downsampling` x `downsampling`
    pixels; each region of `region_size` x `region_size` = d cells is a point in d dimensions. With
    the sums of products S of the centered points, `M = S_yy - S_yp (S_pp + e I)^-1 S_py + e I` is
    the covariance of the labels' regions that those of the probabilities leave unexplained.

    Source: Zhao et al., "Region Mutual Information Loss for Semantic Segmentation", NeurIPS 2019:
    its lower bound of the mutual information, with the public code's sums in place of means and
    e = 5e-4. Cells that would reach beyond the image are left out, where that code pads with zeros.

    The matrices are computed in float64, on JAX too.

    Args:
        labels: int tensor `(batch, height, width)`, static shape; values outside
            `[0, num_classes)` are ignored.
        logits: float tensor `(batch, h, w, num_classes)`, resized as in `cross_entropy`.
        region_size: int > 0, cells along a side of a region.
        downsampling: int > 0, pixels along a side of a cell.
        pixel_weight: float in [0, 1], a, of the binary cross-entropy.

    Returns:
        float32 scalar, may be negative: this replica's share of the loss.

    Raises:
        ValueError: if an argument is out of range, the shape of the labels is not static, or the
            image is smaller than a region.
    """
    if min(region_size, downsampling) < 1 or not 0 <= pixel_weight <= 1:
        raise ValueError(
            "`region_size` and `downsampling` must be 1 or more, and `pixel_weight` 0 to 1. "
            f"Received: {region_size=}, {downsampling=}, {pixel_weight=}"
        )
    if None in labels.shape:
        raise ValueError(f"`labels` must have a static shape. Received: {tuple(labels.shape)}")
    if min(labels.shape[1:3]) < region_size * downsampling:
        raise ValueError(
            f"`labels` must be as large as a region, {region_size} x {downsampling} pixels. "
            f"Received: {tuple(labels.shape)}. Use a larger crop or less downsampling"
        )
    logits = logits_like(labels, logits)
    labels, num_classes = ops.cast(labels, "int32"), logits.shape[-1]
    valid = ops.cast(ops.logical_and(labels >= 0, labels < num_classes), "float32")
    own = ops.cast(labels[..., None] == ops.arange(num_classes, dtype="int32"), "float32")
    loss = 0.0
    if pixel_weight:
        each = ops.relu(logits) - logits * own + ops.softplus(-ops.abs(logits))
        loss = pixel_weight * global_ratio(ops.sum(each, axis=-1) * valid, valid)
    if pixel_weight < 1:
        probability = ops.sigmoid(logits) * valid[..., None]
        pooled = [
            ops.average_pool(x, downsampling, strides=downsampling) for x in (probability, own)
        ]
        region = _unexplained(*pooled, region_size)
        loss = loss + (1 - pixel_weight) * region / replicas.num_replicas()
    return loss


def _unexplained(probability, own, size):
    """Computes `mean_b sum_c log det(M_bc) / (2 d)`, with the gradient of the probabilities.

    The derivative of `log det(M) / 2` by the centered points P is `A^T M^-1 (A P - Y)`, with
    `A = S_yp (S_pp + e I)^-1`. It sums to 0 over the points, so that centering leaves it unchanged.

    Args:
        probability, own: float32 tensors `(batch, rows, columns, num_classes)`, of cells.
        size: int, cells along a side of a region.

    Returns:
        float32 scalar.
    """
    batch, rows, columns, num_classes = own.shape
    inner = (rows - size + 1, columns - size + 1)
    shifts = [(down, across) for down in range(size) for across in range(size)]
    dimensions = len(shifts)

    def points(cells):
        """Returns the centered regions, `(num_classes, d, regions)`."""
        parts = [cells[y : y + inner[0], x : x + inner[1]] for y, x in shifts]
        regions = ops.reshape(ops.stack(parts), (dimensions, -1, num_classes))
        regions = ops.transpose(regions, (2, 0, 1))
        return regions - ops.mean(regions, axis=2, keepdims=True)

    def cells(regions):
        """Adds the values of regions, `(num_classes, d, regions)`, to the cells they are of."""
        regions = ops.transpose(regions, (1, 2, 0))
        parts = ops.reshape(regions, (dimensions, *inner, num_classes))
        total = 0.0
        for part, (y, x) in zip(ops.unstack(parts, num=dimensions), shifts, strict=True):
            around = [(y, size - 1 - y), (x, size - 1 - x), (0, 0)]
            total = total + ops.pad(part, around)
        return total

    def image(p, y):
        # TensorFlow's decompositions raise for non-finite values, which should reach the loss.
        finite = ops.all(ops.isfinite(p))
        p, y = points(ops.where(finite, p, 0.0)), points(y)
        with double_precision():
            value, explained, weights = _log_determinant(p, y)
        slope = ops.matmul(weights, ops.matmul(explained, p) - y)
        return ops.where(finite, value, float("nan")), cells(slope)

    @ops.custom_gradient
    def compute(probability):
        def step(carry, index):
            return carry, image(*(ops.take(x, index, axis=0) for x in (probability, own)))

        values, slopes = scan(step, (), batch, [(), (rows, columns, num_classes)])[1]
        values, slopes = ops.mean(values.stack()), slopes.stack() / batch

        def gradient(*arguments, upstream=None):
            return upstream_of(arguments, upstream) * slopes

        return values, gradient

    return compute(probability)


def _log_determinant(p, y):
    """Computes the loss of an image and the matrices of its gradient, in float64.

    Args:
        p, y: float32 tensors `(num_classes, d, regions)`, centered.

    Returns:
        `(value, A, A^T M^-1 / d)`: float32 scalar, and float32 `(num_classes, d, d)` each.
    """
    dimensions = p.shape[1]
    p, y = ops.cast(p, "float64"), ops.cast(y, "float64")
    diagonal = ops.cast(_DIAGONAL * ops.eye(dimensions, dtype="float64"), "float64")
    p_transposed = ops.transpose(p, (0, 2, 1))
    s_pp = ops.matmul(p, p_transposed) + diagonal
    s_yp = ops.matmul(y, p_transposed)
    s_yy = ops.matmul(y, ops.transpose(y, (0, 2, 1))) + diagonal
    explained = ops.transpose(ops.linalg.solve(s_pp, ops.transpose(s_yp, (0, 2, 1))), (0, 2, 1))
    rest = s_yy - ops.matmul(explained, ops.transpose(s_yp, (0, 2, 1)))
    rest = (rest + ops.transpose(rest, (0, 2, 1))) / 2.0
    root = ops.linalg.cholesky(rest)
    value = ops.sum(ops.log(ops.diagonal(root, axis1=1, axis2=2))) / dimensions
    weights = ops.transpose(ops.linalg.solve(rest, explained), (0, 2, 1)) / dimensions
    return tuple(ops.cast(x, "float32") for x in (value, explained, weights))
