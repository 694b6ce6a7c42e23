import tensorflow as tf

from kseg.training.distribution import describe_devices


def test_the_device_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    strategy = tf.distribute.get_strategy()
    line = describe_devices(strategy, driver=str(tmp_path / "none"))
    assert line.startswith("device: CPU, ") and ";" not in line
    (tmp_path / "driver").write_text("")
    assert "finds no GPU" in describe_devices(strategy, driver=str(tmp_path / "driver"))
    # Nobody misses what was switched off.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert ";" not in describe_devices(strategy, driver=str(tmp_path / "driver"))
