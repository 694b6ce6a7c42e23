"""Model folders of TensorFlow Serving and of NVIDIA Triton, with their configuration."""

import json
import pathlib
import re

from kseg import files
from kseg.segmenters import pixel_format_of
from kseg.serving.checks import TENSORFLOW_SERVING, TRITON, check_model_folders_target
from kseg.serving.onnx import export_onnx
from kseg.serving.saved_model import export_saved_model

_MAX_BATCH = 8
_WAIT_MICROSECONDS = 10_000
_VERSION = "1"

_TRITON_TYPES = {"uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16", "float32": "TYPE_FP32"}

_SERVING_MODELS = """\
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
  }}
}}
"""
# Images of different sizes cannot form a batch: TensorFlow Serving must not pad them.
_SERVING_BATCHING = f"""\
max_batch_size {{ value: {_MAX_BATCH} }}
batch_timeout_micros {{ value: {_WAIT_MICROSECONDS} }}
pad_variable_length_inputs: false
"""
_TRITON_CONFIG = """\
name: "{name}"
backend: "onnxruntime"
default_model_filename: "model.onnx"
max_batch_size: {batch}
input [
  {{
    name: "images"
    data_type: {dtype}
    dims: [ {images} ]
  }}
]
output [
{outputs}
]
{more}parameters {{ key: "class_names" value: {{ string_value: {names} }} }}
"""
_TRITON_OUTPUT = """\
  {{
    name: "{name}"
    data_type: {dtype}
    dims: [ {dims} ]
  }}"""
_TRITON_BATCHING = f"dynamic_batching {{ max_queue_delay_microseconds: {_WAIT_MICROSECONDS} }}\n"


def export_model_folders(
    segmenter,
    float_segmenter,
    path,
    classes,
    name,
    *,
    size=None,
    result="logits",
    quantize=None,
    calibration=(),
    value_range=None,
    overwrite=False,
):
    """Writes model folders for TensorFlow Serving (a SavedModel) and Triton (an ONNX file).

    `path` gets `tensorflow_serving/models.config`, `tensorflow_serving/batching.config` and
    `tensorflow_serving/NAME/1`, which TensorFlow Serving finds if `tensorflow_serving` is
    `/models`; and `triton/NAME/config.pbtxt` and `triton/NAME/1/model.onnx`, where `triton` is the
    model repository.

    Args:
        segmenter: model from `kseg.segmenters.build_segmenter`, for the SavedModel.
        float_segmenter: the same network in float32, for ONNX.
        path: folder to write, atomically; existing model folders are replaced as a whole.
        classes: `kseg.classes.Classes`.
        name: str, the name of the model; characters other than letters, digits, `_` and `-`
            become `_`.
        size, result, quantize, calibration: as for `kseg.serving.onnx.export_onnx`, for the ONNX
            file. With a size, images are not batched.
        value_range, overwrite: as for `kseg.serving.export_saved_model`.

    Returns:
        str, the name of the model.

    Raises:
        UserError, ValueError: as for `export_saved_model` and `export_onnx`.
    """
    path, name = pathlib.Path(path), model_name(name)
    check_model_folders_target(path, overwrite)
    with files.replace_folder(path) as new:
        serving, triton = new / TENSORFLOW_SERVING, new / TRITON / name
        export_saved_model(segmenter, serving / name / _VERSION, classes, value_range=value_range)
        (serving / "models.config").write_text(_SERVING_MODELS.format(name=name))
        (serving / "batching.config").write_text(_SERVING_BATCHING)
        export_onnx(
            float_segmenter,
            triton / _VERSION / "model.onnx",
            classes,
            size,
            result=result,
            quantize=quantize,
            calibration=calibration,
            value_range=value_range,
        )
        config = triton_config(name, classes, pixel_format_of(float_segmenter), size, result)
        (triton / "config.pbtxt").write_text(config)
    return name


def model_name(name):
    """Replaces the characters of a name that servers do not take in the name of a model."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def triton_config(name, classes, pixel_format, size, result):
    """Writes the text of Triton's `config.pbtxt` for an ONNX file of `export_onnx`.

    Args:
        name: str, name of the model.
        classes: `kseg.classes.Classes`.
        pixel_format: `kseg.pixel_format.PixelFormat` of the images; None: 8-bit RGB.
        size, result: as for `export_onnx`.

    Returns:
        str.
    """
    # With a largest batch above 0, Triton adds the axis of the batch to all shapes itself, and the
    # network must take any batch.
    sides = "-1, -1" if size is None else "1, {}, {}".format(*size)
    outputs = {"logits": ("TYPE_FP32", f"{sides}, {len(classes)}")}
    if result == "classes":
        outputs = {"classes": ("TYPE_UINT8", sides), "confidence": ("TYPE_FP32", sides)}
    return _TRITON_CONFIG.format(
        name=name,
        batch=_MAX_BATCH if size is None else 0,
        images=f"{sides}, {pixel_format.channels if pixel_format else 3}",
        dtype=_TRITON_TYPES[pixel_format.dtype if pixel_format else "uint8"],
        outputs=",\n".join(
            _TRITON_OUTPUT.format(name=key, dtype=dtype, dims=dims)
            for key, (dtype, dims) in outputs.items()
        ),
        more=_TRITON_BATCHING if size is None else "",
        # A JSON list in a string, whose escapes are those of the text format, too.
        names=json.dumps(json.dumps(classes.names)),
    )
