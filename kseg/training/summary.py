"""The terms of a trainer as text, for its summary."""


def summary_of_terms(trainer):
    """Describes losses, objectives and memory banks.

    Args:
        trainer: `kseg.training.trainer.SegmentationTrainer`.

    Returns:
        list of str, one line each.
    """
    lines = [" Loss terms:"]
    for name, (_, weight) in trainer.losses_on_logits.items():
        lines.append(f"   {name}: weight {weight:g}")
    for objective, weight in zip(trainer.objectives, trainer.objective_weights, strict=True):
        shown = "a schedule" if callable(weight) else f"{weight:g}"
        lines.append(f"   {objective.name} ({type(objective).__name__}): weight {shown}")
        if (bank := objective.bank) is not None:
            size = _megabytes(bank)
            slots = (
                f"{bank.num_classes} x {bank.capacity} slots"
                if isinstance(bank.capacity, int)
                else f"{bank.num_classes} rings of {sum(bank.capacity)} slots in all"
            )
            lines.append(f"     {bank.name}: {slots} of {bank.dim}, {bank.storage}, {size}")
    return lines


def _megabytes(bank):
    width = {"float32": 4, "bfloat16": 2}[bank.storage]
    return f"{bank.entries.shape[0] * bank.dim * width / 1e6:.2f} MB"
