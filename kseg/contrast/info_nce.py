"""The one loss under every method: supervised InfoNCE with one positive per term, streamed."""

import math

from keras import ops

from kseg.control_flow import scan

# Stands for -inf where a row has no negative: exp and softplus of it are exactly 0, never NaN.
_NO_NEGATIVE = -1e30
_TINY = 1e-30
# Up to this, similarities of unit vectors are small enough for exp without a shift: e^32 = 8e13.
_DIRECT = 32.0


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
    block_size=1024,
):
    """Pulls each anchor towards the keys of its class, away from the other keys.

    Each positive stands in its own term, against all negatives:
    `L_i = mean_j softplus(logsumexp_n(s_in) - s_ij)`, j over positives, n over negatives,
    `s = anchors . keys / temperature`. An anchor without negatives has loss 0.

    Exact, in tiles of `block_size` x `block_size` similarities: neither direction holds the whole
    matrix, so memory grows with the anchors and the keys but never with their product. Tiles
    without a valid pair are skipped, and tiles without a positive pair take a shorter way, so rows
    sorted by class, empty ones last (as the samplers give them), are the fastest; the result does
    not depend on the order.

    Sources: Hu et al., ICCV 2021, Eq. 4; Pissas et al., ECCV 2022, Eq. 1-2; Sung et al.,
    CVPR 2024, supplement Eq. 4-5. Khosla et al. 2020 differ: there the denominator holds all
    positives.

    Args:
        anchors: float tensor `(num_anchors, dim)`, rows of unit L2 norm. The number is static.
        anchor_labels: int tensor `(num_anchors,)`; -1 marks an empty row.
        keys: float tensor `(num_keys, dim)`, rows of unit L2 norm. The number is static.
        key_labels: int tensor `(num_keys,)`; -1 marks an empty slot, neither positive nor negative.
        temperature: float > 0, divides cosine similarities (no unit).
        exclude_self: bool. The anchors are among the keys: anchor i is key `self_positions[i]`,
            which is no positive of it.
        self_positions: int tensor `(num_anchors,)`, or None: anchor i is key i.
        detach_keys: bool. No gradient flows to `keys` (a memory bank), which saves its cost.
        block_size: int, rows and columns of a tile.

    Returns:
        `(loss, valid)`, float32 `(num_anchors,)` each. `loss` is in nats and 0 where the
        anchor has no positive; `valid` is 1 where it has one, else 0.

    Raises:
        ValueError: if `temperature` or `block_size` is not positive, or a number of rows is not
            known or is 0.
    """
    if temperature <= 0:
        raise ValueError(f"`temperature` must be positive. Received: {temperature=}")
    if block_size <= 0:
        raise ValueError(f"`block_size` must be positive. Received: {block_size=}")
    num_anchors, num_keys = anchors.shape[0], keys.shape[0]
    if not num_anchors or not num_keys:
        raise ValueError(
            "`anchors` and `keys` must have a static number of rows, at least 1. Received: "
            f"shapes {tuple(anchors.shape)} and {tuple(keys.shape)}. Pad with label -1"
        )
    dim = anchors.shape[1]
    anchor_blocks, anchor_size = _split(num_anchors, block_size)
    key_blocks, key_size = _split(num_keys, block_size)
    anchor_labels = _pad(ops.cast(anchor_labels, "int32"), anchor_blocks * anchor_size, -1)
    key_labels = _pad(ops.cast(key_labels, "int32"), key_blocks * key_size, -1)
    if exclude_self:
        if self_positions is None:
            self_positions = ops.arange(num_anchors)
        self_positions = _pad(ops.cast(self_positions, "int32"), anchor_blocks * anchor_size, -1)

    # Blocks up to the last valid row: what samplers leave unused costs nothing.
    used_anchor_blocks = _last_valid(anchor_labels) // anchor_size + 1
    used_key_blocks = _last_valid(key_labels) // key_size + 1

    def tile_labels(i, j):
        """Labels of rows `(anchor_size, 1)` and columns `(1, key_size)` of tile (i, j)."""
        rows = ops.slice(anchor_labels, (i * anchor_size,), (anchor_size,))
        columns = ops.slice(key_labels, (j * key_size,), (key_size,))
        return rows[:, None], columns[None, :]

    def positives(i, j, rows, columns):
        """Bool mask `(anchor_size, key_size)`."""
        mask = ops.logical_and(rows == columns, rows >= 0)
        if exclude_self:
            here = ops.slice(self_positions, (i * anchor_size,), (anchor_size,))[:, None]
            there = ops.arange(key_size)[None, :] + j * key_size
            mask = ops.logical_and(mask, here != there)
        return mask

    def negatives(rows, columns):
        """Bool mask `(anchor_size, key_size)`. For an empty row it holds all keys."""
        return ops.logical_and(rows != columns, columns >= 0)

    kinds = _tile_kinds(
        ops.reshape(anchor_labels, (anchor_blocks, anchor_size)),
        ops.reshape(key_labels, (key_blocks, key_size)),
    )

    def by_kind(i, j, empty, all_negative, mixed, *operands):
        """Calls one of three functions of the operands: by what pairs tile (i, j) holds."""
        kind = ops.take(kinds, i * key_blocks + j)
        return ops.switch(kind, (empty, all_negative, mixed), *operands)

    # Similarities are at most 1 / temperature. Where exp of that is well inside float32, nothing
    # has to be subtracted from them first, which saves passes over the tiles.
    direct = 1.0 / temperature <= _DIRECT

    @ops.custom_gradient
    def mean_over_positives(anchors, keys):
        scaled_anchors = _pad(anchors / temperature, anchor_blocks * anchor_size)
        padded_keys = _pad(keys, key_blocks * key_size)

        def anchor_block(i):
            return ops.slice(scaled_anchors, (i * anchor_size, 0), (anchor_size, dim))

        def key_block(j):
            return ops.slice(padded_keys, (j * key_size, 0), (key_size, dim))

        def log_sum_exp_of_negatives(i, block):
            """Streams the negatives, with a running maximum if needed; `(anchor_size, 1)`."""

            def accumulate(j, peak, total, mask=None):
                s = _similarities(block, key_block(j))
                if direct:
                    terms = ops.exp(s) if mask is None else ops.where(mask, ops.exp(s), 0.0)
                    return peak, total + ops.sum(terms, axis=1, keepdims=True)
                masked = s if mask is None else ops.where(mask, s, _NO_NEGATIVE)
                new_peak = ops.maximum(peak, ops.max(masked, axis=1, keepdims=True))
                terms = ops.exp(masked - new_peak)
                if mask is not None:  # A row without negatives has exp(0) in its masked places.
                    terms = ops.where(mask, terms, 0.0)
                total = total * ops.exp(peak - new_peak)
                return new_peak, total + ops.sum(terms, axis=1, keepdims=True)

            def step(carry, j):
                carry = by_kind(
                    i,
                    j,
                    lambda *carry: carry,
                    lambda *carry: accumulate(j, *carry),
                    lambda *carry: accumulate(j, *carry, mask=negatives(*tile_labels(i, j))),
                    *carry,
                )
                return tuple(carry), ()

            start = (
                ops.full((anchor_size, 1), 0.0 if direct else _NO_NEGATIVE, "float32"),
                ops.zeros((anchor_size, 1), "float32"),
            )
            (peak, total), _ = scan(step, start, used_key_blocks)
            has_negative = total > 0
            total = ops.where(has_negative, total, 1.0)
            return ops.where(has_negative, peak + ops.log(total), _NO_NEGATIVE)

        def sums_over_positives(i, block, neg):
            """Sums of softplus, of its derivative, and of ones; `(anchor_size, 1)` each."""

            def accumulate(j, loss, slope, count):
                mask = positives(i, j, *tile_labels(i, j))
                x = neg - _similarities(block, key_block(j))
                loss = loss + _masked_row_sum(ops.softplus(x), mask)
                slope = slope + _masked_row_sum(ops.sigmoid(x), mask)
                return loss, slope, count + _masked_row_sum(ops.ones_like(x), mask)

            def step(carry, j):
                carry = by_kind(
                    i,
                    j,
                    lambda *carry: carry,
                    lambda *carry: carry,
                    lambda *carry: accumulate(j, *carry),
                    *carry,
                )
                return tuple(carry), ()

            zeros = ops.zeros((anchor_size, 1), "float32")
            sums, _ = scan(step, (zeros, zeros, zeros), used_key_blocks)
            return sums

        def forward(carry, i):
            block = anchor_block(i)
            neg = log_sum_exp_of_negatives(i, block)
            return carry, (neg, *sums_over_positives(i, block, neg))

        _, rows = scan(
            forward, (), used_anchor_blocks, [(anchor_size, 1)] * 4, capacity=anchor_blocks
        )
        neg, loss, slope, count = (ops.reshape(x, (-1, 1)) for x in rows)
        safe_count = ops.maximum(count, 1.0)

        def gradient(*arguments, upstream=None):
            if upstream is None:
                (upstream, _) = arguments
            # dL/ds_ij = -sigmoid(neg_i - s_ij) w_i for a positive, exp(s_in - neg_i) v_i for a
            # negative, v = w * slope. Row factors are taken out of the tile: into the anchors that
            # the keys' gradient is made of, and behind the product that the anchors' gradient is.
            w = _pad(ops.reshape(upstream, (-1, 1)), anchor_blocks * anchor_size) / safe_count
            # Without a shift a tile holds exp(s_in), and exp(-neg_i) is a row factor too.
            unit = ops.ones_like(neg)
            if direct:
                unit = ops.exp(ops.where(neg > _NO_NEGATIVE, neg, 0.0))
            v = w * slope / unit
            weighted_anchors = scaled_anchors * v
            pull = 1.0 / ops.maximum(slope, _TINY)  # Also where w is 0.

            def rows_of(x, i):
                return ops.slice(x, (i * anchor_size, 0), (anchor_size, 1))

            def similarity_gradient(i, j, mixed):
                """dL/ds of a tile, divided by v; `(anchor_size, key_size)`."""
                s = _similarities(anchor_block(i), key_block(j))
                x = s if direct else s - rows_of(neg, i)
                if not mixed:
                    return ops.exp(x)
                labels = tile_labels(i, j)
                # A positive can be far above `neg`, where exp would overflow.
                pushed = ops.exp(ops.where(negatives(*labels), x, _NO_NEGATIVE))
                pulled = ops.sigmoid(rows_of(neg, i) - s) * rows_of(pull, i) * rows_of(unit, i)
                return pushed - ops.where(positives(i, j, *labels), pulled, 0.0)

            def zero_gradient(rows):
                return ops.zeros((rows, dim), "float32")

            if detach_keys:

                def to_anchors(i, j, mixed):
                    def branch(d_anchors):
                        ds = similarity_gradient(i, j, mixed)
                        return d_anchors + ops.matmul(ds, key_block(j))

                    return branch

                def anchor_step(carry, i):
                    def step(carry, j):
                        branches = (lambda d: d, to_anchors(i, j, False), to_anchors(i, j, True))
                        return (by_kind(i, j, *branches, *carry),), ()

                    d_anchors, _ = scan(step, (zero_gradient(anchor_size),), used_key_blocks)
                    return carry, d_anchors

                shapes = [(anchor_size, dim)]
                _, (d_anchors,) = scan(
                    anchor_step, (), used_anchor_blocks, shapes, capacity=anchor_blocks
                )
                d_keys = ops.zeros_like(keys)
            else:

                def to_both(i, j, mixed):
                    def branch(d_keys):
                        ds = similarity_gradient(i, j, mixed)
                        block = ops.slice(
                            weighted_anchors, (i * anchor_size, 0), (anchor_size, dim)
                        )
                        d_keys = d_keys + ops.einsum("ij,id->jd", ds, block)
                        return d_keys, ops.matmul(ds, key_block(j))

                    return branch

                def to_neither(d_keys):
                    return d_keys, zero_gradient(anchor_size)

                def key_step(carry, j):
                    def step(carry, i):
                        branches = (to_neither, to_both(i, j, False), to_both(i, j, True))
                        d_keys, d_anchors = by_kind(i, j, *branches, *carry)
                        return (d_keys,), (d_anchors,)

                    start = (zero_gradient(key_size),)
                    shapes = [(anchor_size, dim)]
                    d_keys, (d_anchors,) = scan(
                        step, start, used_anchor_blocks, shapes, capacity=anchor_blocks
                    )
                    return (carry[0] + d_anchors,), d_keys

                start = (ops.zeros((anchor_blocks, anchor_size, dim), "float32"),)
                shapes = [(key_size, dim)]
                (d_anchors,), (d_keys,) = scan(
                    key_step, start, used_key_blocks, shapes, capacity=key_blocks
                )
                d_keys = ops.reshape(d_keys, (-1, dim))[:num_keys]
            d_anchors = ops.reshape(d_anchors, (-1, dim)) * (v / temperature)
            return d_anchors[:num_anchors], d_keys

        loss = ops.reshape(loss / safe_count, (-1,))[:num_anchors]
        return (loss, ops.reshape(count, (-1,))[:num_anchors]), gradient

    loss, count = mean_over_positives(ops.cast(anchors, "float32"), ops.cast(keys, "float32"))
    return loss, ops.cast(count > 0, "float32")


def _similarities(anchors, keys):
    return ops.einsum("id,jd->ij", anchors, keys)


def _masked_row_sum(x, mask):
    return ops.sum(ops.where(mask, x, 0.0), axis=1, keepdims=True)


def _tile_kinds(anchor_labels, key_labels):
    """What pairs each tile holds: 0 none, 1 negatives only, 2 possibly positives.

    Args:
        anchor_labels: int32 tensor `(anchor_blocks, anchor_size)`.
        key_labels: int32 tensor `(key_blocks, key_size)`.

    Returns:
        int32 tensor `(anchor_blocks * key_blocks,)`.
    """
    least, most = ops.min(anchor_labels, axis=1)[:, None], ops.max(anchor_labels, axis=1)[:, None]
    key_least, key_most = ops.min(key_labels, axis=1)[None, :], ops.max(key_labels, axis=1)[None, :]
    empty = ops.logical_or(most < 0, key_most < 0)
    # Disjoint ranges of labels prove that there is no positive; sorted rows have them. Empty keys
    # are no negatives, so there must be none.
    apart = ops.logical_or(most < key_least, key_most < least)
    negative = ops.logical_and(apart, key_least >= 0)
    kinds = ops.where(empty, 0, ops.where(negative, 1, 2))
    return ops.cast(ops.reshape(kinds, (-1,)), "int32")


def _last_valid(labels):
    """Place of the last label that is not -1; -1 if there is none."""
    return ops.max(ops.where(labels >= 0, ops.arange(labels.shape[0], dtype="int32"), -1))


def _split(rows, block_size):
    """The fewest equal blocks of at most `block_size` rows: (blocks, rows of each)."""
    blocks = math.ceil(rows / block_size)
    return blocks, math.ceil(rows / blocks)


def _pad(x, rows, value=0):
    """Appends rows of `value`."""
    missing = rows - x.shape[0]
    if not missing:
        return x
    return ops.pad(x, [(0, missing)] + [(0, 0)] * (len(x.shape) - 1), constant_values=value)
