"""The report of loading a checkpoint: arrays used and unused, and weights left unchanged."""

import dataclasses

_NAMES_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """The use of a checkpoint's arrays, and the origin of a model's weights.

    Attributes:
        loaded: dict from the name of each array that was used to the path of its weight.
        unused: dict from the name of each array that was not used to the reason.
        missing: list of the paths of the weights that kept their values.
        num_values: int, the number of values loaded.
        source: str, the file or address of the checkpoint.
        conventions: tuple of str, the code bases whose naming the arrays follow.
        folded: dict from the name of each array that was folded into another weight (the bias of a
            convolution) to the path of that weight (the moving mean after it).
        adapted: list of str, how kernels for RGB were adapted to other channels.
    """

    loaded: dict
    unused: dict
    missing: list
    num_values: int = 0
    source: str = ""
    conventions: tuple = ()
    folded: dict = dataclasses.field(default_factory=dict)
    adapted: list = dataclasses.field(default_factory=list)

    def __str__(self):
        """Lists on one line each what was loaded, what was unused and why, and what was missing."""
        source = f" from {self.source}" if self.source else ""
        names = f" ({'; '.join(self.conventions)})" if self.conventions else ""
        lines = [
            f"loaded {len(self.loaded)} arrays ({self.num_values / 1e6:.2f} M values)"
            f"{source}{names}"
        ]
        lines += [f"adapted: {line}" for line in self.adapted]
        if self.folded:
            lines.append(f"folded: {_some(self.folded)} into the moving means after them")
        reasons = {}
        for name, reason in self.unused.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"unused: {_some(names)}: {reason}" for reason, names in reasons.items()]
        if self.missing:
            layers = dict.fromkeys(path.split("/")[0] for path in self.missing)
            lines.append(
                f"newly initialized: {len(self.missing)} weights of {_some(layers, 'layers')}"
            )
        return "\n".join(lines)


def _some(names, noun="arrays"):
    names = list(names)
    if len(names) <= _NAMES_SHOWN:
        return ", ".join(names)
    return f"{len(names)} {noun} ({', '.join(names[:_NAMES_SHOWN])}, ...)"
