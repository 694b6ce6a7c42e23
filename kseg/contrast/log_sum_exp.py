"""Log-sum-exp over the negatives of a row, shared by all forms of InfoNCE."""

from keras import ops

# Replaces -inf for a row without negatives: its exp and softplus are exactly 0, never NaN.
NO_NEGATIVE = -1e30


def log_of_total(peak, total):
    """Completes a log-sum-exp from its shift and the sum of the shifted exponentials.

    Args:
        peak: float32 tensor, the shift of each row: its greatest similarity, or 0.
        total: float32 tensor of the same shape, `sum_n exp(s_n - peak)`; 0 for no negatives.

    Returns:
        `(log_sum_exp, divisor)`, float32 tensors of the same shape: `peak + log(total)`, or
        `NO_NEGATIVE` for no negatives; and `total`, or 1 for no negatives, to divide by.
    """
    has_negative = total > 0
    divisor = ops.where(has_negative, total, 1.0)
    return ops.where(has_negative, peak + ops.log(divisor), NO_NEGATIVE), divisor
