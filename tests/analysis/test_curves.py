import tensorflow as tf

from kseg.analysis.curves import read_scalars


def write(folder, values, suffix):
    writer = tf.summary.create_file_writer(str(folder), filename_suffix=suffix)
    with writer.as_default():
        for step, value in values.items():
            tf.summary.scalar("loss", value, step=step)
        tf.summary.image("picture", tf.zeros((1, 4, 4, 3)), step=0)
    writer.close()


def test_a_run_that_was_resumed(tmp_path):
    assert read_scalars(tmp_path / "nothing") == {}
    write(tmp_path, {1: 3.0, 2: 2.5, 3: 9.0}, ".a")
    assert read_scalars(tmp_path) == {"loss": ([1, 2, 3], [3.0, 2.5, 9.0])}
    first = next(tmp_path.iterdir())
    # File names begin with the time: the second run starts later.
    first.rename(tmp_path / "events.out.tfevents.0000000001.a")
    write(tmp_path, {3: 2.0, 4: 1.5}, ".b")
    assert read_scalars(tmp_path) == {"loss": ([1, 2, 3, 4], [3.0, 2.5, 2.0, 1.5])}


def test_a_file_that_is_still_written(tmp_path):
    write(tmp_path, {1: 3.0, 2: 2.5}, "")
    file = next(tmp_path.iterdir())
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])  # Within the image.
    assert read_scalars(tmp_path) == {"loss": ([1, 2], [3.0, 2.5])}
