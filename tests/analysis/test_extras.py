import importlib.util

import numpy as np
import pytest

from kseg.analysis import charts, extras
from kseg.analysis.embeddings import t_sne
from kseg.errors import UserError


def test_names_what_to_install(monkeypatch):
    extras.require("matplotlib", "sklearn")
    find_spec = importlib.util.find_spec
    hidden = {"matplotlib", "sklearn"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in hidden else find_spec(name)
    )
    with pytest.raises(UserError, match=r"matplotlib and scikit-learn.*'kseg\[analysis\]'"):
        extras.require("matplotlib", "sklearn")
    with pytest.raises(UserError, match=r"pip install matplotlib$"):
        charts.histogram(np.zeros(3), title="shares")
    with pytest.raises(UserError, match=r"pip install scikit-learn$"):
        t_sne(np.eye(5))
