"""The kernel of the contrastive methods: supervised InfoNCE, one positive per term, in tiles."""

import math

import numpy as np
from keras import ops

from kseg.backend.gradients import upstream_of
from kseg.backend.loops import scan
from kseg.backend.products import matmul
from kseg.contrast.log_sum_exp import NO_NEGATIVE, log_of_total
from kseg.contrast.tiles import held_similarities, tile_sizes

_TINY = 1e-30
# The largest 1 / temperature for which exp of a similarity needs no shift: e^32 = 8e13.
_DIRECT = 32.0
# Up to this number of similarities (16 MiB) one tile is fastest on a CPU, too.
_ONE_TILE = 2**22


def info_nce(
    anchors,
    anchor_labels,
    keys,
    key_labels,
    *,
    temperature=0.1,
    exclude_self=False,
    self_positions=None,
    detach_keys=False,
    reduction="none",
    block_size=None,
    rows_sorted=False,
):
    """Pulls each anchor toward the keys of its class, away from the other keys.

    Each positive has its own term, against all negatives:
    `L_i = mean_j softplus(logsumexp_n(s_in) - s_ij)`, j over positives, n over negatives,
    `s = anchors . keys / temperature`. An anchor without negatives has loss 0.

    Exact, computed in tiles of at most `block_size` rows and columns: neither the forward nor the
    backward pass holds the whole similarity matrix, so memory grows with the anchors and the keys,
    not with their product. Tiles without a valid pair are skipped, and tiles without a positive
    pair need less computation. Rows are therefore sorted by class first, with empty ones last; the
    result does not depend on the order. What fits into one tile is neither sorted nor looped over.

    Sources: Hu et al., ICCV 2021, Eq. 4; Pissas et al., ECCV 2022, Eq. 1-2; Sung et al.,
    CVPR 2024, supplement Eq. 4-5. Khosla et al. 2020 differ: their denominator contains all
    positives.

    Args:
        anchors: float tensor `(num_anchors, dim)`, rows of unit L2 norm; static number of rows.
        anchor_labels: int tensor `(num_anchors,)`; -1 marks an empty row.
        keys: float tensor `(num_keys, dim)`, rows of unit L2 norm; static number of rows. With
            `detach_keys` also an object with `shape` and `rows(start, count)`, such as
            `kseg.backend.rows.RowReader`, whose rows are then read tile by tile and never copied as
            a whole.
        key_labels: int tensor `(num_keys,)`; -1 marks an empty slot, neither positive nor negative.
        temperature: float > 0, divides cosine similarities (no unit).
        exclude_self: bool. If True, the anchors are among the keys: anchor i is key
            `self_positions[i]`, which is not a positive of it.
        self_positions: int tensor `(num_anchors,)`, or None: anchor i is key i.
        detach_keys: bool. If True, no gradient flows to `keys` (a memory bank). The gradient with
            respect to the anchors is then computed in the forward pass, and similarities are
            computed once, except in tiles with positives.
        reduction: `"none"` or `"sum"`, over the anchors. With `"sum"` the gradients with respect to
            both sides are computed in the forward pass, and every similarity is computed once; for
            this, the similarities of one block of anchors with all keys are held, which takes as
            much memory as the keys, or 64 MiB (256 MiB on an accelerator) if that is more.
        block_size: int, the largest number of rows and columns of a tile; or a pair of ints,
            (rows, columns): few rows suit anchors that are mostly empty; or None: on a CPU one tile
            of up to 2^22 similarities, else 1,024; on an accelerator tiles as large as memory
            allows, see `kseg.contrast.tiles.tile_sizes`.
        rows_sorted: bool. If True, the rows are taken as they are; for rows that are sorted by
            class already, with empty ones last, as the samplers return them. Keys read from an
            object with `rows` are always taken as they are.

    Returns:
        `(loss, valid)`, float32 `(num_anchors,)` each, or both summed. `loss` is in nats and 0
        where the anchor has no positive; `valid` is 1 where it has one, else 0.

    Raises:
        ValueError: if `temperature` or `block_size` is not positive, `reduction` is unknown, or a
            number of rows is unknown or 0.
    """
    _check(anchors, keys, temperature, block_size, reduction)
    num_anchors, num_keys = anchors.shape[0], keys.shape[0]
    if block_size is None:
        whole = num_anchors * num_keys <= _ONE_TILE
        on_cpu = (num_anchors, num_keys) if whole else 1024
        block_size = tile_sizes(num_anchors, num_keys, keys.shape[1], on_cpu=on_cpu)
    block_sizes = _pair(block_size)
    anchor_labels, key_labels = (ops.cast(x, "int32") for x in (anchor_labels, key_labels))
    if not exclude_self:
        self_positions = None
    elif self_positions is None:
        self_positions = ops.arange(num_anchors)
    if detach_keys and not hasattr(keys, "rows"):
        keys = ops.stop_gradient(keys)
    # Similarities are at most 1 / temperature. If exp of that is well within float32, no maximum
    # needs to be subtracted first, which saves passes over the tiles.
    direct = 1.0 / temperature <= _DIRECT
    if block_sizes[0] >= num_anchors and block_sizes[1] >= num_keys:
        rows = keys.rows(0, num_keys) if hasattr(keys, "rows") else keys
        loss, valid = _in_one_tile(
            ops.cast(anchors, "float32"),
            ops.cast(rows, "float32"),
            *_pairs(anchor_labels, key_labels, self_positions),
            temperature=temperature,
            direct=direct,
        )
        return (loss, valid) if reduction == "none" else (ops.sum(loss), ops.sum(valid))
    if not rows_sorted:
        anchor_order = _Order(anchor_labels)
        key_order = None if hasattr(keys, "rows") else _Order(key_labels)
        anchors, anchor_labels = anchor_order.sort(anchors), anchor_order.sort(anchor_labels)
        if self_positions is not None:
            self_positions = anchor_order.sort(self_positions)
        if key_order is not None:
            keys, key_labels = key_order.sort(keys), key_order.sort(key_labels)
            if self_positions is not None:
                self_positions = ops.take(key_order.inverse, self_positions)
    summed = reduction == "sum" and direct
    if summed:
        # Limits the similarities held to this number, or to the size of the keys.
        rows = max(keys.shape[1], held_similarities() // num_keys)
        block_sizes = min(block_sizes[0], rows), block_sizes[1]

    def tiles_of(anchors, keys):
        return _Tiles(
            anchors / temperature,
            anchor_labels,
            keys,
            key_labels,
            self_positions=self_positions,
            overlap=detach_keys,
            direct=direct,
            block_sizes=block_sizes,
        )

    anchors = ops.cast(anchors, "float32")
    keys = keys if detach_keys else ops.cast(keys, "float32")
    if summed:
        return _sum_in_tiles(tiles_of, anchors, keys, temperature, detach_keys)
    loss, valid = _in_tiles(tiles_of, anchors, keys, temperature, detach_keys)
    if not rows_sorted and reduction == "none":
        loss, valid = anchor_order.unsort(loss), anchor_order.unsort(valid)
    return (loss, valid) if reduction == "none" else (ops.sum(loss), ops.sum(valid))


def _check(anchors, keys, temperature, block_size, reduction):
    """Checks the arguments; raises as `info_nce`."""
    if temperature <= 0:
        raise ValueError(f"`temperature` must be positive. Received: {temperature=}")
    if block_size is not None and min(_pair(block_size)) <= 0:
        raise ValueError(f"`block_size` must be positive. Received: {block_size=}")
    if reduction not in ("none", "sum"):
        raise ValueError(f"`reduction` must be 'none' or 'sum'. Received: {reduction=}")
    if not anchors.shape[0] or not keys.shape[0]:
        raise ValueError(
            "`anchors` and `keys` must have a static number of rows, at least 1. Received: "
            f"shapes {tuple(anchors.shape)} and {tuple(keys.shape)}. Pad with label -1"
        )


def _in_tiles(tiles_of, anchors, keys, temperature, detach_keys):
    """Computes the loss of each anchor in tiles.

    Args:
        tiles_of: function from anchors and keys to `_Tiles`.
        anchors: float32 tensor `(num_anchors, dim)`.
        keys: float32 tensor `(num_keys, dim)`; with `detach_keys` of any float type, or a
            `RowReader`.
        temperature: float.
        detach_keys: bool, as for `info_nce`.

    Returns:
        `(loss, valid)`, float32 `(num_anchors,)` each.
    """

    @ops.custom_gradient
    def to_anchors(anchors):
        loss, count, direction = _forward(tiles_of(anchors, keys), with_direction=True)

        def gradient(*arguments, upstream=None):
            upstream = upstream_of(arguments, upstream)
            return ops.reshape(upstream, (-1, 1)) * (direction / temperature)

        return (loss, count), gradient

    @ops.custom_gradient
    def to_both(anchors, keys):
        tiles = tiles_of(anchors, keys)
        loss, count, neg, slope = _forward(tiles)

        def gradient(*arguments, upstream=None):
            upstream = upstream_of(arguments, upstream)
            d_anchors, d_keys = _backward(tiles, upstream, count, neg, slope)
            return d_anchors / temperature, d_keys

        return (loss, count), gradient

    loss, count = to_anchors(anchors) if detach_keys else to_both(anchors, keys)
    return loss, ops.cast(count > 0, "float32")


def _sum_in_tiles(tiles_of, anchors, keys, temperature, detach_keys):
    """Computes the sum of the losses in tiles, with its gradients in the forward pass.

    Args:
        tiles_of, anchors, keys, temperature, detach_keys: as for `_in_tiles`.

    Returns:
        `(loss, number)`, float32 scalars: the sum, and the number of anchors that have a positive.
    """

    @ops.custom_gradient
    def to_anchors(anchors):
        loss, number, d_anchors = _sum_with_gradients(tiles_of(anchors, keys), to_keys=False)

        def gradient(*arguments, upstream=None):
            upstream = upstream_of(arguments, upstream)
            return d_anchors * (upstream / temperature)

        return (loss, number), gradient

    @ops.custom_gradient
    def to_both(anchors, keys):
        loss, number, d_anchors, d_keys = _sum_with_gradients(tiles_of(anchors, keys))

        def gradient(*arguments, upstream=None):
            upstream = upstream_of(arguments, upstream)
            return d_anchors * (upstream / temperature), d_keys * upstream

        return (loss, number), gradient

    return to_anchors(anchors) if detach_keys else to_both(anchors, keys)


def _pair(block_size):
    return (block_size, block_size) if isinstance(block_size, int) else tuple(block_size)


class _Order:
    """The order of rows by class, empty ones last.

    Args:
        labels: int32 tensor `(rows,)`.

    Attributes:
        inverse: int32 tensor `(rows,)`, the index of each row among the sorted ones.
    """

    def __init__(self, labels):
        last = np.iinfo("int32").max
        order = ops.argsort(ops.where(labels >= 0, labels, last))
        self._order = ops.cast(order, "int32")
        self.inverse = ops.cast(ops.argsort(self._order), "int32")

    def sort(self, x):
        """Sorts a tensor with one row per label."""
        return _permuted(x, self._order, self.inverse)

    def unsort(self, x):
        """Restores the order of a sorted tensor."""
        return _permuted(x, self.inverse, self._order)


def _permuted(x, order, inverse):
    """Reorders rows; the gradient is a gather, too, where that of `take` would be a scatter."""

    @ops.custom_gradient
    def permute(x):
        def gradient(*arguments, upstream=None):
            return ops.take(upstream_of(arguments, upstream), inverse, axis=0)

        return ops.take(x, order, axis=0), gradient

    if "int" in str(x.dtype):
        return ops.take(x, order, axis=0)
    return permute(ops.convert_to_tensor(x))


def _positive_pairs(rows, columns, own_keys=None, keys=None):
    """Returns the bool mask of the positive pairs, `(num_rows, num_columns)`.

    Args:
        rows, columns: int32 tensors `(num_rows, 1)` and `(1, num_columns)`, labels.
        own_keys: int32 tensor `(num_rows, 1)`, the index of each anchor among all keys, or None.
        keys: int32 tensor `(1, num_columns)`, the index of each column; with `own_keys`.
    """
    mask = ops.logical_and(rows == columns, rows >= 0)
    return mask if own_keys is None else ops.logical_and(mask, own_keys != keys)


def _negative_pairs(rows, columns):
    """Returns the bool mask of the negative pairs; all keys for an empty row."""
    return ops.logical_and(rows != columns, columns >= 0)


def _pairs(anchor_labels, key_labels, self_positions):
    """Returns the bool masks of the positive and the negative pairs, `(num_anchors, num_keys)`."""
    rows, columns, own = anchor_labels[:, None], key_labels[None, :], ()
    if self_positions is not None:
        own_keys = ops.cast(self_positions, "int32")[:, None]
        own = own_keys, ops.arange(key_labels.shape[0], dtype="int32")[None, :]
    return _positive_pairs(rows, columns, *own), _negative_pairs(rows, columns)


def _in_one_tile(anchors, keys, positives, negatives, *, temperature, direct):
    """Computes the loss of few anchors and keys, without loops.

    The gradient with respect to the similarities is computed in the forward pass and kept.

    Args:
        anchors: float32 tensor `(num_anchors, dim)`.
        keys: float32 tensor `(num_keys, dim)`.
        positives, negatives: bool tensors `(num_anchors, num_keys)`.
        temperature: float.
        direct: bool, whether exp of a similarity needs no shift.

    Returns:
        `(loss, valid)`, float32 `(num_anchors,)` each.
    """

    @ops.custom_gradient
    def compute(anchors, keys):
        s = _similarities(anchors / temperature, keys)
        if direct:
            terms = ops.exp(s)
            pushes = ops.where(negatives, terms, 0.0)
            total = ops.sum(pushes, axis=1, keepdims=True)
            pulls = ops.where(positives, total / (total + terms), 0.0)
            losses = ops.log1p(total / terms)
            total = ops.maximum(total, _TINY)
        else:
            s_negative = ops.where(negatives, s, NO_NEGATIVE)
            peak = ops.max(s_negative, axis=1, keepdims=True)
            pushes = ops.where(negatives, ops.exp(s_negative - peak), 0.0)
            neg, total = log_of_total(peak, ops.sum(pushes, axis=1, keepdims=True))
            pulls = ops.where(positives, ops.sigmoid(neg - s), 0.0)
            losses = ops.softplus(neg - s)
        count = ops.sum(ops.cast(positives, "float32"), axis=1, keepdims=True)
        mean = 1.0 / ops.maximum(count, 1.0)
        slope = ops.sum(pulls, axis=1, keepdims=True)
        # dL/ds but for the mean, for a negative by the chain rule through the sum over all of them.
        ds = pushes * (slope / total) - pulls

        def gradient(*arguments, upstream=None):
            upstream = ops.reshape(upstream_of(arguments, upstream), (-1, 1))
            weight = upstream * mean / temperature
            to_keys = matmul(ds, anchors * weight, transpose_a=True)
            return matmul(ds, keys) * weight, to_keys

        loss = ops.reshape(_masked_row_sum(losses, positives) * mean, (-1,))
        return (loss, ops.reshape(count, (-1,))), gradient

    loss, count = compute(anchors, keys)
    return loss, ops.cast(count > 0, "float32")


class _Tiles:
    """The similarity matrix of anchors and keys, partitioned into tiles of equal size.

    Args:
        anchors: float32 tensor `(num_anchors, dim)`, divided by the temperature.
        anchor_labels: int32 tensor `(num_anchors,)`.
        keys: float tensor `(num_keys, dim)`, or a `RowReader`.
        key_labels: int32 tensor `(num_keys,)`.
        self_positions: int tensor `(num_anchors,)`, the index of each anchor among the keys, or
            None.
        overlap: bool, how to complete the last block of keys. True: it starts earlier, within the
            previous block, and masks the keys of that block, so that the keys are never copied.
            False: the keys are padded.
        direct: bool, whether exp of a similarity needs no shift.
        block_sizes: pair of ints, the largest number of rows and columns of a tile.
    """

    def __init__(
        self,
        anchors,
        anchor_labels,
        keys,
        key_labels,
        *,
        self_positions,
        overlap,
        direct,
        block_sizes,
    ):
        self.num_anchors, self.dim = anchors.shape
        self.num_keys = keys.shape[0]
        self.direct = direct
        self.anchor_blocks, self.anchor_size = _split(self.num_anchors, block_sizes[0])
        self.key_blocks, self.key_size = _split(self.num_keys, block_sizes[1])
        padded_anchors = self.anchor_blocks * self.anchor_size
        self.anchors = _pad(anchors, padded_anchors)
        self.anchor_labels = _pad(anchor_labels, padded_anchors, -1)
        self.self_positions = None
        if self_positions is not None:
            self.self_positions = _pad(ops.cast(self_positions, "int32"), padded_anchors, -1)

        starts = np.arange(self.key_blocks) * self.key_size
        if overlap:
            nominal, starts = starts, np.minimum(starts, self.num_keys - self.key_size)
            indices = starts[:, None] + np.arange(self.key_size)
            self.keys = keys
            self.key_labels = ops.where(
                indices < nominal[:, None], -1, ops.take(key_labels, indices.astype("int32"))
            )
            self.key_labels = ops.reshape(self.key_labels, (-1,))
        else:
            self.keys = _pad(keys, self.key_blocks * self.key_size)
            self.key_labels = _pad(key_labels, self.key_blocks * self.key_size, -1)
        self._key_starts = ops.convert_to_tensor(starts, dtype="int32")

        # Blocks up to the last valid row: unused rows of the samplers cost nothing.
        self.used_anchor_blocks = _last_valid(self.anchor_labels) // self.anchor_size + 1
        self.used_key_blocks = _last_valid(self.key_labels) // self.key_size + 1
        self._kinds = _tile_kinds(
            ops.reshape(self.anchor_labels, (self.anchor_blocks, self.anchor_size)),
            ops.reshape(self.key_labels, (self.key_blocks, self.key_size)),
        )

    def by_kind(self, i, j, empty, all_negative, mixed, *operands):
        """Calls one of three functions of the operands, by the kind of pairs in tile (i, j)."""
        kind = ops.take(self._kinds, i * self.key_blocks + j)
        return ops.switch(kind, (empty, all_negative, mixed), *operands)

    def anchor_rows(self, x, i):
        """Returns block i of a tensor with one row per anchor; `(anchor_size, columns)`."""
        return ops.slice(x, (i * self.anchor_size, 0), (self.anchor_size, x.shape[1]))

    def key_rows(self, j):
        """Returns block j of the keys, float32 `(key_size, dim)`."""
        start = ops.take(self._key_starts, j)
        if hasattr(self.keys, "rows"):
            rows = self.keys.rows(start, self.key_size)
        else:
            rows = ops.slice(self.keys, (start, 0), (self.key_size, self.dim))
        return ops.cast(rows, "float32")

    def labels(self, i, j):
        """Labels of the rows, `(anchor_size, 1)`, and columns, `(1, key_size)`, of tile (i, j)."""
        rows = ops.slice(self.anchor_labels, (i * self.anchor_size,), (self.anchor_size,))
        columns = ops.slice(self.key_labels, (j * self.key_size,), (self.key_size,))
        return rows[:, None], columns[None, :]

    def positives(self, i, j):
        """Returns the bool mask of the positive pairs, `(anchor_size, key_size)`."""
        if self.self_positions is None:
            return _positive_pairs(*self.labels(i, j))
        start, size = (i * self.anchor_size,), (self.anchor_size,)
        own_keys = ops.slice(self.self_positions, start, size)[:, None]
        keys = ops.arange(self.key_size, dtype="int32")[None, :] + ops.take(self._key_starts, j)
        return _positive_pairs(*self.labels(i, j), own_keys, keys)

    def negatives(self, i, j):
        """Bool mask of the negative pairs, `(anchor_size, key_size)`; all keys for an empty row."""
        return _negative_pairs(*self.labels(i, j))


def _forward(tiles, *, with_direction=False):
    """Streams over the keys twice: over all tiles for the negatives, over few for the positives.

    Args:
        tiles: `_Tiles`.
        with_direction: bool, whether to compute the gradient with respect to the anchors as well.

    Returns:
        `(loss, count, direction)`, float32 `(num_anchors,)`, `(num_anchors,)` and
        `(num_anchors, dim)`: the mean over positives, their number, and the gradient of the loss
        with respect to the scaled anchors. Without direction `(loss, count, neg, slope)`: in place
        of the gradient, `(padded, 1)` each, the log-sum-exp of the negatives and the sum of the
        derivatives of softplus.
    """
    column = (tiles.anchor_size, 1)
    matrix = (tiles.anchor_size, tiles.dim)
    extra = [ops.zeros(matrix, "float32")] if with_direction else []

    def negatives_of(i, block):
        """Log-sum-exp of the negatives, their sum, and (with direction) their weighted keys."""

        def accumulate(j, peak, total, *weighted, mixed):
            keys = tiles.key_rows(j)
            s = _similarities(block, keys)
            if not tiles.direct:  # Subtract a running maximum.
                s = ops.where(tiles.negatives(i, j), s, NO_NEGATIVE) if mixed else s
                new_peak = ops.maximum(peak, ops.max(s, axis=1, keepdims=True))
                decay = ops.exp(peak - new_peak)
                s, peak, total = s - new_peak, new_peak, total * decay
                weighted = [x * decay for x in weighted]
            terms = ops.exp(s)
            if mixed:  # A row without negatives has exp(0) at its masked positions.
                terms = ops.where(tiles.negatives(i, j), terms, 0.0)
            total = total + ops.sum(terms, axis=1, keepdims=True)
            return peak, total, *(x + matmul(terms, keys) for x in weighted)

        def step(carry, j):
            carry = tiles.by_kind(
                i,
                j,
                lambda *carry: carry,
                lambda *carry: accumulate(j, *carry, mixed=False),
                lambda *carry: accumulate(j, *carry, mixed=True),
                *carry,
            )
            return tuple(carry), ()

        start = 0.0 if tiles.direct else NO_NEGATIVE
        start = (ops.full(column, start, "float32"), ops.zeros(column, "float32"), *extra)
        (peak, total, *weighted), _ = scan(step, start, tiles.used_key_blocks)
        neg, total = log_of_total(peak, total)
        return neg, [x / total for x in weighted]

    def positives_of(i, block, neg):
        """Sums over positives: softplus, its derivative, 1, and (with direction) weighted keys."""

        def accumulate(j, loss, slope, count, *pulling):
            keys = tiles.key_rows(j)
            mask = tiles.positives(i, j)
            x = neg - _similarities(block, keys)
            derivative = ops.where(mask, ops.sigmoid(x), 0.0)
            return (
                loss + _masked_row_sum(ops.softplus(x), mask),
                slope + ops.sum(derivative, axis=1, keepdims=True),
                count + _masked_row_sum(ops.ones_like(x), mask),
                *(y + matmul(derivative, keys) for y in pulling),
            )

        def step(carry, j):
            carry = tiles.by_kind(
                i,
                j,
                lambda *carry: carry,
                lambda *carry: carry,
                lambda *carry: accumulate(j, *carry),
                *carry,
            )
            return tuple(carry), ()

        start = (*(ops.zeros(column, "float32") for _ in range(3)), *extra)
        return scan(step, start, tiles.used_key_blocks)[0]

    def forward(carry, i):
        block = tiles.anchor_rows(tiles.anchors, i)
        neg, pushing = negatives_of(i, block)
        loss, slope, count, *pulling = positives_of(i, block, neg)
        loss = loss / ops.maximum(count, 1.0)
        if not with_direction:
            return carry, (loss, count, neg, slope)
        direction = (slope * pushing[0] - pulling[0]) / ops.maximum(count, 1.0)
        return carry, (loss, count, direction)

    shapes = [column, column, matrix] if with_direction else [column] * 4
    _, outputs = scan(forward, (), tiles.used_anchor_blocks, shapes, capacity=tiles.anchor_blocks)
    outputs = [
        ops.reshape(x.stack(), (-1, shape[1])) for x, shape in zip(outputs, shapes, strict=True)
    ]
    loss, count = (ops.reshape(x, (-1,))[: tiles.num_anchors] for x in outputs[:2])
    if with_direction:
        return loss, count, outputs[2][: tiles.num_anchors]
    return loss, count, *outputs[2:]


def _backward(tiles, upstream, count, neg, slope):
    """Streams over the tiles a second time for the gradients with respect to both sides.

    Args:
        tiles: `_Tiles`.
        upstream: float32 tensor `(num_anchors,)`.
        count: float32 tensor `(num_anchors,)`, positives of each anchor.
        neg, slope: float32 tensors `(padded, 1)`, see `_forward`.

    Returns:
        `(d_anchors, d_keys)`: gradients with respect to the scaled anchors and to the keys.
    """
    # dL/ds_ij = -sigmoid(neg_i - s_ij) w_i for a positive, exp(s_in - neg_i) v_i for a negative,
    # v = w * slope. Row factors are applied outside the tile: to the anchors before the product for
    # the keys' gradient, and to the result of the product for the anchors' gradient.
    weight = upstream / ops.maximum(count, 1.0)
    weight = _pad(ops.reshape(weight, (-1, 1)), tiles.anchor_blocks * tiles.anchor_size)
    # Without a shift a tile contains exp(s_in), and exp(-neg_i) is a row factor too.
    unit = ops.ones_like(neg)
    if tiles.direct:
        unit = ops.exp(ops.where(neg > NO_NEGATIVE, neg, 0.0))
    factor = weight * slope / unit
    weighted_anchors = tiles.anchors * factor
    pull = 1.0 / ops.maximum(slope, _TINY)  # Finite even where the weight is 0.

    def similarity_gradient(i, j, keys, mixed):
        """Computes dL/ds of a tile, divided by the row factor; `(anchor_size, key_size)`."""
        s = _similarities(tiles.anchor_rows(tiles.anchors, i), keys)
        x = s if tiles.direct else s - tiles.anchor_rows(neg, i)
        if not mixed:
            return ops.exp(x)
        # A positive can be far above `neg`, where exp would overflow.
        pushed = ops.exp(ops.where(tiles.negatives(i, j), x, NO_NEGATIVE))
        pulled = ops.sigmoid(tiles.anchor_rows(neg, i) - s)
        pulled = pulled * tiles.anchor_rows(pull, i) * tiles.anchor_rows(unit, i)
        return pushed - ops.where(tiles.positives(i, j), pulled, 0.0)

    def zeros(rows):
        return ops.zeros((rows, tiles.dim), "float32")

    def branch(i, j, mixed):
        def compute(d_keys):
            keys = tiles.key_rows(j)
            ds = similarity_gradient(i, j, keys, mixed)
            rows = tiles.anchor_rows(weighted_anchors, i)
            d_keys = d_keys + matmul(ds, rows, transpose_a=True)
            return d_keys, matmul(ds, keys)

        return compute

    def key_step(carry, j):
        def step(carry, i):
            branches = (lambda d: (d, zeros(tiles.anchor_size)), branch(i, j, False))
            d_keys, d_anchors = tiles.by_kind(i, j, *branches, branch(i, j, True), *carry)
            return (d_keys,), (d_anchors,)

        d_keys, (d_anchors,) = scan(
            step,
            (zeros(tiles.key_size),),
            tiles.used_anchor_blocks,
            [(tiles.anchor_size, tiles.dim)],
            capacity=tiles.anchor_blocks,
        )
        return (carry[0] + d_anchors.stack(),), d_keys

    (d_anchors,), (d_keys,) = scan(
        key_step,
        (ops.zeros((tiles.anchor_blocks, tiles.anchor_size, tiles.dim), "float32"),),
        tiles.used_key_blocks,
        [(tiles.key_size, tiles.dim)],
        capacity=tiles.key_blocks,
    )
    d_anchors = ops.reshape(d_anchors, (-1, tiles.dim)) * factor
    d_keys = ops.reshape(d_keys.stack(), (-1, tiles.dim))
    return d_anchors[: tiles.num_anchors], d_keys[: tiles.num_keys]


def _sum_with_gradients(tiles, *, to_keys=True):
    """Computes the sum over anchors and its gradients, evaluating each similarity once.

    For each block of anchors, exp of the similarities with all keys is held; from it follow the
    sums over negatives, the terms of the positives and both gradients.

    Args:
        tiles: `_Tiles`, direct.
        to_keys: bool, whether to compute the gradient with respect to the keys.

    Returns:
        `(loss, number, d_anchors, d_keys)`: the sum of the losses and the number of anchors that
        have a positive, float32 scalars; the gradients with respect to the scaled anchors and, with
        `to_keys` only, to the keys.
    """
    column, tile = (tiles.anchor_size, 1), (tiles.anchor_size, tiles.key_size)
    key_shapes = [(tiles.key_size, tiles.dim)] if to_keys else []

    def zeros(*shape):
        return ops.zeros(shape, "float32")

    def exponentials_of(i, block):
        """Computes exp(s), tile by tile, and its sum over the negatives."""

        def compute(j, total, *, mixed):
            terms = ops.exp(_similarities(block, tiles.key_rows(j)))
            negatives = ops.where(tiles.negatives(i, j), terms, 0.0) if mixed else terms
            return total + ops.sum(negatives, axis=1, keepdims=True), terms

        def step(carry, j):
            total, terms = tiles.by_kind(
                i,
                j,
                lambda total: (total, zeros(*tile)),
                lambda total: compute(j, total, mixed=False),
                lambda total: compute(j, total, mixed=True),
                *carry,
            )
            return (total,), (terms,)

        capacity = tiles.key_blocks
        carry = (zeros(*column),)
        (total,), (terms,) = scan(step, carry, tiles.used_key_blocks, [tile], capacity=capacity)
        return total, terms

    def pulls(i, j, total, terms):
        """Negative derivative of softplus(neg - s) with respect to s: total / (total + exp(s))."""
        return ops.where(tiles.positives(i, j), total / (total + terms), 0.0)

    def positives_of(i, total, exponentials):
        """Sums over positives: softplus, its derivative, and 1."""

        def accumulate(j, loss, slope, count):
            terms, mask = exponentials.read(j), tiles.positives(i, j)
            return (
                loss + _masked_row_sum(ops.log1p(total / terms), mask),
                slope + ops.sum(pulls(i, j, total, terms), axis=1, keepdims=True),
                count + _masked_row_sum(ops.ones_like(terms), mask),
            )

        def step(carry, j):
            branches = (lambda *carry: carry,) * 2
            carry = tiles.by_kind(i, j, *branches, lambda *carry: accumulate(j, *carry), *carry)
            return tuple(carry), ()

        return scan(step, (zeros(*column),) * 3, tiles.used_key_blocks)[0]

    def forward(carry, i):
        loss, number, *d_keys = carry
        block = tiles.anchor_rows(tiles.anchors, i)
        total, exponentials = exponentials_of(i, block)
        losses, slope, count = positives_of(i, total, exponentials)
        # dL/ds is factor_i exp(s) for a negative, -pulls / count_i for a positive; the factor is
        # applied outside the tile.
        factor = slope / (ops.maximum(total, _TINY) * ops.maximum(count, 1.0))
        pull = total / ops.maximum(slope, _TINY)
        weighted = block * factor

        def gradients(j, d_block, *, mixed):
            keys, ds = tiles.key_rows(j), exponentials.read(j)
            if mixed:
                pulled = pulls(i, j, total, ds) * pull
                ds = ops.where(tiles.negatives(i, j), ds, 0.0) - pulled
            to_block = [matmul(ds, weighted, transpose_a=True)] if to_keys else []
            return d_block + matmul(ds, keys), *to_block

        def step(carry, j):
            d_block, *to_block = tiles.by_kind(
                i,
                j,
                lambda d_block: (d_block, *(zeros(*shape) for shape in key_shapes)),
                lambda d_block: gradients(j, d_block, mixed=False),
                lambda d_block: gradients(j, d_block, mixed=True),
                *carry,
            )
            return (d_block,), tuple(to_block)

        (d_block,), from_block = scan(
            step,
            (zeros(tiles.anchor_size, tiles.dim),),
            tiles.used_key_blocks,
            key_shapes,
            capacity=tiles.key_blocks,
        )
        loss = loss + ops.sum(losses / ops.maximum(count, 1.0))
        number = number + ops.sum(ops.cast(count > 0, "float32"))
        d_keys = [x + y.stack() for x, y in zip(d_keys, from_block, strict=True)]
        return (loss, number, *d_keys), (d_block * factor,)

    (loss, number, *d_keys), (d_anchors,) = scan(
        forward,
        (zeros(), zeros(), *(zeros(tiles.key_blocks, *shape) for shape in key_shapes)),
        tiles.used_anchor_blocks,
        [(tiles.anchor_size, tiles.dim)],
        capacity=tiles.anchor_blocks,
    )
    d_anchors = ops.reshape(d_anchors.stack(), (-1, tiles.dim))[: tiles.num_anchors]
    d_keys = [ops.reshape(x, (-1, tiles.dim))[: tiles.num_keys] for x in d_keys]
    return loss, number, d_anchors, *d_keys


def _similarities(anchors, keys):
    return matmul(anchors, keys, transpose_b=True)


def _masked_row_sum(x, mask):
    return ops.sum(ops.where(mask, x, 0.0), axis=1, keepdims=True)


def _tile_kinds(anchor_labels, key_labels):
    """Classifies tiles by their pairs: 0 none, 1 negatives only, 2 possibly positives.

    Args:
        anchor_labels: int32 tensor `(anchor_blocks, anchor_size)`.
        key_labels: int32 tensor `(key_blocks, key_size)`.

    Returns:
        int32 tensor `(anchor_blocks * key_blocks,)`.
    """
    low, high = ops.min(anchor_labels, axis=1)[:, None], ops.max(anchor_labels, axis=1)[:, None]
    key_low, key_high = ops.min(key_labels, axis=1)[None, :], ops.max(key_labels, axis=1)[None, :]
    empty = ops.logical_or(high < 0, key_high < 0)
    # Disjoint label ranges, usual for sorted rows, prove that there is no positive. Empty keys are
    # not negatives, so a tile of negatives only must not contain any.
    disjoint = ops.logical_or(high < key_low, key_high < low)
    negative = ops.logical_and(disjoint, key_low >= 0)
    kinds = ops.where(empty, 0, ops.where(negative, 1, 2))
    return ops.cast(ops.reshape(kinds, (-1,)), "int32")


def _last_valid(labels):
    """Returns the index of the last label that is not -1; -1 if all are."""
    return ops.max(ops.where(labels >= 0, ops.arange(labels.shape[0], dtype="int32"), -1))


def _split(rows, block_size):
    """Splits rows into the fewest equal blocks of at most `block_size`: (blocks, block rows)."""
    blocks = math.ceil(rows / block_size)
    return blocks, math.ceil(rows / blocks)


def _pad(x, rows, value=0):
    """Appends rows of `value`."""
    missing = rows - x.shape[0]
    if not missing:
        return x
    return ops.pad(x, [(0, missing)] + [(0, 0)] * (len(x.shape) - 1), constant_values=value)
