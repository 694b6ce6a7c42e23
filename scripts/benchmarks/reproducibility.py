"""Bitwise comparison of two identical trainings, for several networks.

    python scripts/benchmarks/reproducibility.py --networks swin_t_upernet hrnet_w48_ocr

Each line starts `scripts/train.py` twice, at the same time, with default threads, on the CPU, and
counts the arrays (weights, moving statistics, momenta, memory banks, averages) that differ in the
checkpoints of the last step. All methods are trained at once, unless `--methods` names some.
Random weights; the synthetic data are made first.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
UPERNET = {"name": "upernet", "channels": 64, "aux_channels": 32}
DEEPLAB = {"name": "deeplabv3", "channels": 64, "aspp_channels": 64, "aux_channels": 32}
OCR = {"name": "ocr", "channels": 64, "key_channels": 32}
# In small: keras-cv's classes of published sizes want to download.
MOBILENET = {
    "class_name": "MobileNetV3Backbone",
    "arguments": {
        "stackwise_expansion": [1, 2, 2, 2],
        "stackwise_filters": [16, 24, 40, 96],
        "stackwise_kernel_size": [3, 3, 5, 5],
        "stackwise_stride": [2, 2, 2, 2],
        "stackwise_se_ratio": [0.25, None, 0.25, 0.25],
        "stackwise_activation": ["relu", "relu", "hard_swish", "hard_swish"],
    },
}
EFFICIENTNET = {
    "class_name": "EfficientNetV2Backbone",
    "arguments": {
        "stackwise_kernel_sizes": [3, 3, 3, 3, 3],
        "stackwise_num_repeats": [1, 1, 2, 2, 2],
        "stackwise_input_filters": [16, 16, 24, 32, 64],
        "stackwise_output_filters": [16, 24, 32, 64, 96],
        "stackwise_expansion_ratios": [1, 4, 4, 4, 4],
        "stackwise_squeeze_and_excite_ratios": [0.0, 0.0, 0.0, 0.25, 0.25],
        "stackwise_strides": [1, 2, 2, 2, 2],
        "stackwise_conv_types": ["fused", "fused", "fused", "unfused", "unfused"],
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
    },
}
NETWORKS = {
    "hrnet_w18_small_ocr": ({"name": "hrnet_w18_small"}, OCR),
    "hrnet_w48_ocr": ({"name": "hrnet_w48"}, OCR),
    "resnet50_upernet": ({"name": "resnet50"}, UPERNET),
    "resnet18_deeplabv3": ({"name": "resnet18", "output_stride": 16}, DEEPLAB),
    "swin_t_upernet": ({"name": "swin_t"}, UPERNET),
    "efficientnet_lite0_upernet": ({"name": "efficientnet_lite0"}, UPERNET),
    "keras_cv_mobilenet_v3_upernet": ({"name": "keras_cv", **MOBILENET}, UPERNET),
    "keras_cv_efficientnet_v2_upernet": ({"name": "keras_cv", **EFFICIENTNET}, UPERNET),
}
METHODS = {
    "multi_scale": {},
    "region_contrast": {"capacity": 20},
    "contextrast": {},
    "pixel_contrast": {"memory": "both", "pixel_capacity": 50, "region_capacity": 20},
}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument(
        "--methods", nargs="*", choices=METHODS, default=list(METHODS), help="none: cross-entropy"
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--crop-size", type=int, nargs=2, default=(128, 128))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--minutes", type=float, default=15, help="the most for one network")
    parser.add_argument("--output", help="folder that keeps the runs; default: a temporary one")
    parser.add_argument(
        "--toy", action="store_true", help="one small network, cross-entropy, one step: to try it"
    )
    arguments = parser.parse_args(argv)
    if arguments.toy:
        arguments.networks, arguments.methods = ["resnet18_deeplabv3"], []
        arguments.steps, arguments.crop_size, arguments.batch_size = 1, (32, 32), 2
    folder = pathlib.Path(arguments.output or tempfile.mkdtemp(prefix="kseg_bits_"))
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder)
    differ = False
    crop = "x".join(map(str, arguments.crop_size))
    methods = ", ".join(arguments.methods) or "cross-entropy"
    print("| network | methods | crop | batch | steps | arrays | differ |")
    print("|---|---|---|---|---|---|---|", flush=True)
    try:
        for network in arguments.networks:
            names, differing = compare(folder, network, arguments)
            differ = differ or bool(differing)
            print(
                f"| {network} | {methods} | {crop} | {arguments.batch_size} | {arguments.steps} "
                f"| {len(names)} | {len(differing)} |",
                flush=True,
            )
            for name in differing[:3]:
                print(f"  differs: {name}", file=sys.stderr)
    finally:
        if arguments.output is None:
            shutil.rmtree(folder)
    return int(differ)


def prepare(folder):
    sys.path.append(str(ROOT))
    import pipelines

    pipelines.prepare_once("synthetic", folder / "data/synthetic", train_images=8, val_images=2)


def write_config(folder, network, arguments):
    backbone, head = NETWORKS[network]
    config = {
        "name": network,
        "model": {"backbone": backbone, "head": head, "embedding_dim": 64},
        "contrast": [{"name": name, **METHODS[name]} for name in arguments.methods],
        "data": {
            "dataset": "synthetic",
            "crop_size": list(arguments.crop_size),
            "batch_size": arguments.batch_size,
        },
        "optimizer": {"name": "sgd", "learning_rate": 0.01},
        "schedule": {"name": "poly", "warmup_steps": 0},
        "train": {
            # One more, because the last step is followed by evaluation and export.
            "steps": arguments.steps + 1,
            "checkpoint_every": arguments.steps,
            "evaluate_every": arguments.steps + 1,
            "log_every": 1,
            "precision": arguments.precision,
        },
    }
    path = folder / f"{network}.json"
    path.write_text(json.dumps(config))
    return path


def compare(folder, network, arguments):
    """Returns `(names, differing)`: all arrays of a checkpoint, and those that differ."""
    config = write_config(folder, network, arguments)
    runs = [folder / "runs" / f"{network}-{i}" for i in range(2)]
    processes = [start(folder, config, run) for run in runs]
    files = [run / f"checkpoints/step-{arguments.steps:08d}.npz" for run in runs]
    deadline = time.monotonic() + 60 * arguments.minutes
    try:
        while not all(file.exists() for file in files):
            for process, run in zip(processes, runs, strict=True):
                if process.poll() not in (None, 0) or time.monotonic() > deadline:
                    log = run.with_suffix(".log").read_text()
                    sys.exit(f"{network}: no checkpoint of step {arguments.steps}:\n{log[-2000:]}")
            time.sleep(0.2)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    with np.load(files[0]) as one, np.load(files[1]) as two:
        assert one.files == two.files
        return one.files, [n for n in one.files if one[n].tobytes() != two[n].tobytes()]


def start(folder, config, run):
    """Starts the command as a user would, but without a GPU."""
    run.parent.mkdir(exist_ok=True)
    command = [sys.executable, ROOT / "scripts/train.py", "--config", config, "--run", run]
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="", PYTHONPATH=str(ROOT))
    with open(run.with_suffix(".log"), "w") as log:
        return subprocess.Popen(
            [*map(str, command), "--restart"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


if __name__ == "__main__":
    sys.exit(main())
