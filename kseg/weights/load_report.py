import dataclasses

_NAMES_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of the arrays of a checkpoint and of the weights of a model.

    Attributes:
        loaded: dict from the name of each array that was used to the path of its weight.
        unused: dict from the name of each array that was not used to the reason.
        missing: list of the paths of the weights that kept their values.
        num_values: int, how many numbers were loaded.
        source: str, where the arrays came from.
        conventions: tuple of str, the code bases whose names the arrays bear.
        folded: dict from the name of each array that went into another's weight to its path.
    """

    loaded: dict
    unused: dict
    missing: list
    num_values: int = 0
    source: str = ""
    conventions: tuple = ()
    folded: dict = dataclasses.field(default_factory=dict)

    def __str__(self):
        """One line each: what was loaded, what was not and why, what keeps its first values."""
        source = f" from {self.source}" if self.source else ""
        names = f" ({'; '.join(self.conventions)})" if self.conventions else ""
        lines = [
            f"loaded {len(self.loaded)} arrays ({self.num_values / 1e6:.2f} M values)"
            f"{source}{names}"
        ]
        if self.folded:
            lines.append(f"folded: {_some(self.folded)} into the moving means behind them")
        reasons = {}
        for name, reason in self.unused.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"unused: {_some(names)}: {reason}" for reason, names in reasons.items()]
        if self.missing:
            layers = dict.fromkeys(path.split("/")[0] for path in self.missing)
            lines.append(
                f"initialised afresh: {len(self.missing)} weights of {_some(layers, 'layers')}"
            )
        return "\n".join(lines)


def _some(names, noun="arrays"):
    names = list(names)
    if len(names) <= _NAMES_SHOWN:
        return ", ".join(names)
    return f"{len(names)} {noun} ({', '.join(names[:_NAMES_SHOWN])}, ...)"
