import os
import signal

import pytest

from kseg import waiting
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


def test_a_second_sigterm_asks_for_nothing_new():
    """`timeout` of the coreutils sends two; a second SIGINT interrupts."""
    with Stopping(strategy=None, cluster=None) as stopping:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.is_due(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_signals_of_a_finished_training_are_forgotten():
    """They do not end a process that keeps running after training, such as a notebook."""
    wakeup = signal.set_wakeup_fd(-1)
    assert wakeup == -1
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        with Stopping(strategy=None, cluster=None) as stopping:
            os.kill(os.getpid(), number)
            assert stopping.is_due(1)
            with waiting.signals_watched():  # An inner block changes nothing.
                pass
            assert waiting._Watch.pipe is not None
        assert waiting._Watch.pipe is None and not waiting._Watch.signals
        assert signal.set_wakeup_fd(-1) == -1
