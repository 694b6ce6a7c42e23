import os
import signal

import pytest

from kseg.errors import Interrupted
from kseg.training.stopping import Stopping


def test_a_signal_stops_after_the_step(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with Stopping(strategy=None, cluster=None) as stopping:
        assert not stopping.is_due(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.is_due(2)
        with pytest.raises(Interrupted, match="stopped at step 2; the same command resumes there"):
            stopping.stop(2)
    assert signal.getsignal(signal.SIGTERM) == before
    assert "stopping after this step" in capsys.readouterr().err
