"""Malicious files, and files damaged at random, read in a process with limited memory and time.

    python -m tests.weights.hostile attacks FOLDER
    python -m tests.weights.hostile damages FOLDER --count 1600 --seed 0

prints one JSON object: what reading each file gave. A crash, a hang or too much memory ends the
process, and the last line on standard error names the file.
"""

import argparse
import collections
import json
import pathlib
import pickle
import resource
import signal
import struct
import sys
import zipfile

import h5py
import keras
import numpy as np
import tensorflow as tf

from kseg.errors import UserError
from kseg.runs import checkpoints
from kseg.weights import load_weights
from kseg.weights.files import read_file
from tests.weights.torch_writer import Storage, Tensor, pickled, tensor, write_legacy, write_zip

SPARE_MEMORY = 700 * 2**20  # Bytes beyond what the process has once its libraries are loaded.
SECONDS = 20  # For one file, on a machine with other load.


def little_memory():
    with open("/proc/self/status") as status:
        sizes = dict(line.split(":", 1) for line in status)
    now = int(sizes["VmSize"].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (now + SPARE_MEMORY, resource.RLIM_INFINITY))


def outcome(function, path):
    """Returns `"read"`, or the line that refuses the file; anything else is an error."""
    print(path.name, file=sys.stderr, flush=True)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)  # Ends the process, even within C code.
    try:
        function(path)
    except UserError as error:
        assert "\n" not in str(error) and str(path) in str(error), repr(str(error))
        return str(error).replace(str(path), "PATH")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "read"


# Malicious files. --------------------------------------------------------------------------------


def pickle_of(*opcodes):
    return b"\x80\x02" + b"".join(opcodes) + b"."


def laughing(depth=60):
    """A tuple of the same two tuples, and so on: its hash and its text have 2^depth parts."""
    parts = [b")q\x000"]
    for i in range(depth):
        parts.append(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"0")
    return b"".join(parts) + b"h" + bytes([depth])


DEEP = b")" + b"\x85" * 150_000


def torch_attacks():
    """Pickles by name."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    ordered = b"ccollections\nOrderedDict\n"
    pair_list = b"](K\x01K\x02\x86" + b"K\x03K\x04\x86" * 30_000 + b"eq\x01"
    many = b"(" + b"K\x01" * 50_000 + b"tq\x01"
    colliding = b"".join(
        b"\x8a\x0a" + (k * (2**61 - 1) % 2**79).to_bytes(10, "little") + b"N" for k in range(40_000)
    )
    return {
        "deep key": pickle_of(b"}", DEEP, b"K\x01s"),
        "laughing key": pickle_of(b"}", laughing(), b"K\x01s"),
        "deep keys": pickle_of(b"}(", DEEP, b"K\x01u"),
        "deep key of a dict": pickle_of(b"(", DEEP, b"K\x01d"),
        "deep key of an ordered dict": pickle_of(ordered, b"]", DEEP, b"K\x01\x86a\x85R"),
        "deep member of a set": b"\x80\x04\x8f(" + DEEP + b"\x90.",
        "deep member of a frozen set": b"\x80\x04(" + DEEP + b"\x91.",
        "laughing size": pickle_of(rebuild, b"(NK\x00", laughing(), b")\x89}tR"),
        "laughing reference": pickle_of(b"(", laughing(), b"K\x01K\x01K\x01K\x01tQ"),
        "deep value": pickle_of(b"}X\x01\x00\x00\x00a", DEEP, b"s"),
        "laughing value": pickle_of(b"}X\x01\x00\x00\x00a", laughing(), b"s"),
        "laughing tree": pickle_of(laughing()),
        "keys of one hash": pickle_of(b"}(", colliding, b"u"),
        "sizes over and over": pickle_of(many, b"(" + b"ctorch\nSize\nh\x01\x85R" * 20_000 + b"t"),
        "dicts over and over": pickle_of(
            pair_list, b"(" + (b"ccollections\nOrderedDict\nh\x01\x85R") * 20_000 + b"t"
        ),
        "arguments over and over": pickle_of(
            many, b"0cevil\nf\nq\x020" + b"h\x02h\x01R0" * 50_000 + b"N"
        ),
        "classes without number": pickle_of(*(b"ca\nb%d\n0" % i for i in range(50_000)), b"N"),
        "a byte array": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
        "a long text": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b".",
    }


def write_attacks(folder):
    """Writes all files, and returns their paths."""
    for i, (name, data) in enumerate(torch_attacks().items()):
        write_zip(folder / f"{i:02} {name} zip.pth", {}, data=data)
        write_legacy(folder / f"{i:02} {name} legacy.pth", {}, data=data)
        if i < 12:  # Where the magic number should be, and the list of storages.
            (folder / f"{i:02} {name} first.pt").write_bytes(data)
            content, _ = pickled({}, legacy=True)
            header = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
            start = b"".join(pickle.dumps(value, protocol=2) for value in header)
            (folder / f"{i:02} {name} last.bin").write_bytes(start + content + data)
    one = Storage(np.ones(4, "float32"))
    for name, size in (
        ("vast", (100_000, 100_000)),
        ("beyond", (2**40, 2**40)),
        ("axes", (1,) * 99),
    ):
        state = {"conv1.weight": Tensor(one, size, (0,) * len(size))}
        write_zip(folder / f"{name} zip.pth", state)
        write_legacy(folder / f"{name} legacy.ckpt", state)
    many = {f"a{i}": Tensor(one, (2**20,), (0,)) for i in range(3000)}
    write_zip(folder / "many.pth", many)
    # Zip bombs: members that inflate, some to more than they claim.
    zeros = bytes(2**29)
    for suffix, member in (
        (".npz", "a.npy"),
        (".keras", "model.weights.h5"),
        (".pth", "x/data.pkl"),
    ):
        for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
            with zipfile.ZipFile(folder / f"bomb {method}{suffix}", "w", method) as archive:
                archive.writestr(
                    member, zeros[: 2**27] if method != zipfile.ZIP_DEFLATED else zeros
                )
        content = bytearray((folder / f"bomb 8{suffix}").read_bytes())
        for mark, position in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
            at = content.index(mark) + position
            content[at : at + 4] = struct.pack("<I", 1000)
        (folder / f"lying bomb{suffix}").write_bytes(content)
    # Shapes that are only claimed.
    for shape in (
        "(1000000000000,)",
        "(0, 1000000000000)",
        "(%s)" % ("9" * 4000),
        "(1,)" + " " * 9000,
    ):
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        with zipfile.ZipFile(folder / f"claim {shape[:9]}.npz", "w") as archive:
            archive.writestr("a.npy", content)
    for name, arguments in {
        "claim": {"shape": (10**12,), "dtype": "f4"},
        "chunks": {"shape": (2**20, 2**12), "dtype": "f4", "chunks": (2**19, 2**10)},
        "filter": {"data": np.zeros(2**27, "u1"), "compression": "gzip", "chunks": (2**27,)},
    }.items():
        with h5py.File(folder / f"{name}.weights.h5", "w") as file:
            group = file.create_group("layers/conv/vars")
            group.attrs["name"] = "conv1"
            group.create_dataset("0", **arguments)
    # A global heap with an object of length 0: HDF5 never returns.
    with h5py.File(folder / "heap.weights.h5", "w") as file:
        group = file.create_group("layers/conv/vars")
        group.attrs["name"] = "conv1"
        group.create_dataset("0", data=np.ones(3, "f4"))
    content = bytearray((folder / "heap.weights.h5").read_bytes())
    position = content.index(b"GCOL") + 16
    while (head := struct.unpack_from("<HHIQ", content, position))[0]:
        position += 16 + -(-head[3] // 8) * 8
    struct.pack_into("<Q", content, position + 8, 0)
    (folder / "heap.weights.h5").write_bytes(content)
    with h5py.File(folder / "loop.weights.h5", "w") as file:
        group = file.create_group("layers/a")
        group.create_group("vars").attrs["name"] = "a"
        group["layers"] = file["layers"]
    with h5py.File(folder / "laughing.weights.h5", "w") as file:
        inner = file.create_group("layers/a")
        inner.create_group("vars").attrs["name"] = "a"
        for i in range(40):
            outer = file.create_group(f"g{i}")
            outer.create_group("vars").attrs["name"] = "b"
            outer["x"], outer["y"] = inner, inner
            inner = outer
        file["layers/b"] = inner
    for name, header in {
        "deep": b"[" * 100_000,
        "deep objects": b'{"a":' * 100_000,
        "vast shape": json.dumps(
            {"a": {"dtype": "F32", "shape": [10**3000] * 20_000, "data_offsets": [0, 4]}}
        ).encode(),
        "vast empty shape": json.dumps(
            {"a": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}
        ).encode(),
    }.items():
        content = struct.pack("<Q", len(header)) + header + bytes(4)
        (folder / f"{name}.safetensors").write_bytes(content)
        (folder / f"{name}.safetensors.index.json").write_bytes(header)
    return sorted(folder.iterdir())


# Files damaged at random. ------------------------------------------------------------------------


def network():
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="conv1")(image)
    x = keras.layers.BatchNormalization(name="bn1")(x)
    return keras.Model(image, keras.layers.Conv2D(2, 1, name="logits")(x), name="network")


def name_map(name):
    return name.replace(".", "/")


def write_intact(folder, model):
    """Writes one file of each of eight formats; returns the functions that read them, by path."""
    arrays = {}
    for weight in model.weights:
        array = weight.numpy()
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        arrays[weight.path.replace("/", ".")] = np.ascontiguousarray(array)
    state = collections.OrderedDict((name, tensor(array)) for name, array in arrays.items())
    wrapped = {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1, "state": {0: [1, (2,)]}}}
    model.save_weights(folder / "a.weights.h5")
    model.save(folder / "b.keras")
    np.savez(folder / "c.npz", **arrays)
    np.savez_compressed(folder / "d.npz", **arrays)
    write_zip(folder / "e.pth", wrapped)
    write_legacy(folder / "f.pt", wrapped)
    header, data = {}, b""
    for name, array in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(header).encode()
    (folder / "g.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    checkpoints.save(folder / "step-3.npz", checkpoints.model_variables(model), {"step": 3})

    def load(path):
        load_weights(
            model, str(path), name_map=None if path.suffix in (".h5", ".keras") else name_map
        )

    def restore(path):
        checkpoints.restore(path, checkpoints.model_variables(model))

    return {path: restore if "step" in path.name else load for path in sorted(folder.iterdir())}


def damage(content, rng):
    """Applies one of six kinds of random damage, as by disks, transfers or editors."""
    content = bytearray(content)
    kind = rng.integers(6)
    start = int(rng.integers(len(content)))
    length = int(min(2 ** rng.uniform(0, 12), len(content) - start))
    if kind == 0:  # Some bits.
        for index in rng.integers(0, len(content), rng.integers(1, 9)):
            content[index] ^= 1 << int(rng.integers(8))
    elif kind == 1:  # Truncated.
        del content[start:]
    elif kind == 2:  # A hole of zeros, or of ones.
        content[start : start + length] = bytes([int(rng.choice([0, 255]))]) * length
    elif kind == 3:  # Noise.
        content[start : start + length] = rng.bytes(length)
    elif kind == 4:  # A piece is missing.
        del content[start : start + length]
    else:  # A piece is duplicated.
        content[start:start] = content[start : start + length]
    return bytes(content)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["attacks", "damages"])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    result = {}
    if options.what == "attacks":
        paths = write_attacks(options.folder)
        little_memory()
        result = {path.name: outcome(read_file, path) for path in paths}
    else:
        rng = np.random.default_rng(options.seed)
        intact = options.folder / "intact"
        intact.mkdir()
        model = network()
        readers = write_intact(intact, model)
        for path, function in readers.items():
            assert outcome(function, path) == "read", path
        contents = {path: path.read_bytes() for path in readers}
        little_memory()
        for i in range(options.count):
            path, function = list(readers.items())[i % len(readers)]
            broken = options.folder / f"{i}-{path.name}"
            broken.write_bytes(damage(contents[path], rng))
            result[broken.name] = outcome(function, broken)
            broken.unlink()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
