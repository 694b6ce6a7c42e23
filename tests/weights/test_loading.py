import functools
import re

import keras
import numpy as np
import pytest

from kseg.backbones import build_hrnet
from kseg.backbones.swin import build_swin
from kseg.errors import UserError
from kseg.runs import checkpoints
from kseg.segmenters import build_segmenter
from kseg.weights import load_weights
from kseg.weights.torch_file import Checkpoint
from tests import tiny_networks
from tests.golden_file import Golden
from tests.weights.torch_writer import tensor, write_zip

HEAD = {  # torchvision's DeepLabV3.
    "aspp_1x1": ("classifier.0.convs.0.0", "classifier.0.convs.0.1"),
    "aspp_rate12": ("classifier.0.convs.1.0", "classifier.0.convs.1.1"),
    "aspp_rate24": ("classifier.0.convs.2.0", "classifier.0.convs.2.1"),
    "aspp_rate36": ("classifier.0.convs.3.0", "classifier.0.convs.3.1"),
    "aspp_pool": ("classifier.0.convs.4.1", "classifier.0.convs.4.2"),
    "project": ("classifier.0.project.0", "classifier.0.project.1"),
    "fusion": ("classifier.1", "classifier.2"),
    "logits": ("classifier.4", None),
    "aux_fusion": ("aux_classifier.0", "aux_classifier.1"),
    "aux_logits": ("aux_classifier.4", None),
}
REGION_CONTRAST = {
    "aspp_pool": ("decoder.aspp.conv1.1", "decoder.aspp.conv1.2"),
    "aspp_1x1": ("decoder.aspp.conv2.0", "decoder.aspp.conv2.1"),
    "aspp_rate12": ("decoder.aspp.conv3.0", "decoder.aspp.conv3.1"),
    "aspp_rate24": ("decoder.aspp.conv4.0", "decoder.aspp.conv4.1"),
    "aspp_rate36": ("decoder.aspp.conv5.0", "decoder.aspp.conv5.1"),
    "fusion": ("decoder.head.0", "decoder.head.1"),
    "logits": ("decoder.final", None),
    "aux_fusion": ("auxor.aux.0", "auxor.aux.1"),
    "aux_logits": ("auxor.aux.4", None),
}
PARAMETERS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


tiny_resnet = functools.partial(tiny_networks.tiny_resnet, channels=(2, 3, 4, 5))


def tiny_segmenter(num_classes=3, *, variant="v1b", project=True, **arguments):
    head = {"channels": 4, "aspp_channels": 4, "aux_channels": 4, "project": project}
    return build_segmenter(
        tiny_resnet(variant=variant), "deeplabv3", num_classes, head_arguments=head, **arguments
    )


def randomize(model, seed):
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in model.weights])
    return model


def torch_name(path, backbone="backbone.", head=HEAD):
    """The name that torchvision, or the code of the head, has for a weight of `tiny_segmenter`."""
    layer, *part, parameter = path.split("/")
    is_norm = part == ["normalization"]
    if layer.startswith("deeplabv3_"):
        module = head[layer.removeprefix("deeplabv3_")][is_norm]
    else:
        module = layer.replace("_", ".")
        if "downsample" in module:
            module += ".1" if is_norm else ".0"
        elif module == "conv1.6" and is_norm:
            module = "bn1"
        elif module in ("conv1.0", "conv1.3"):
            module = f"conv1.{int(module[-1]) + is_norm}"
        elif is_norm:
            module = re.sub(r"conv(\d)$", r"bn\1", module)
        module = backbone + module
    return f"{module}.{PARAMETERS[parameter]}"


def state_of(model, backbone="backbone.", head=HEAD):
    """The state dict of PyTorch for a model's weights, without projectors."""
    state = {}
    for weight in model.weights:
        if weight.path.startswith("embedding_"):
            continue
        array = weight.numpy()
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        name = torch_name(weight.path, backbone, head)
        state[name] = array
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = np.array(7)
    return state


def write(folder, state, name="x.npz"):
    np.savez(folder / name, **state)
    return folder / name


def values(model):
    return {weight.path: weight.numpy() for weight in model.weights}


def assert_equal(model, expected, paths=None):
    result = values(model)
    for path in expected if paths is None else paths:
        np.testing.assert_array_equal(result[path], expected[path], err_msg=path)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.model.encoder."])
def test_backbone(prefix, tmp_path):
    source = randomize(tiny_resnet(), 1)
    state = state_of(source, prefix)
    state[f"{prefix}fc.weight"], state[f"{prefix}fc.bias"] = np.zeros((1000, 20)), np.zeros(1000)
    model = tiny_resnet()
    report = load_weights(model, write(tmp_path, state))
    assert_equal(model, values(source))
    assert set(report.loaded.values()) == set(values(model))
    assert not report.missing
    assert report.unused[f"{prefix}fc.bias"] == "classifier of the pretraining"
    assert report.num_values == sum(array.size for array in values(model).values())
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert set(report.unused) == {f"{prefix}fc.weight", f"{prefix}fc.bias", *counters}
    first, *_, last = str(report).splitlines()
    assert first == (
        f"loaded {len(report.loaded)} arrays (0.00 M values) from {tmp_path / 'x.npz'} "
        "(ResNet of timm, torchvision or mmsegmentation)"
    )
    assert last == f"unused: {prefix}fc.weight, {prefix}fc.bias: classifier of the pretraining"


def test_pytorch_file(tmp_path):
    source = randomize(tiny_resnet(), 1)
    state = {name: tensor(np.asarray(array)) for name, array in state_of(source).items()}
    path = write_zip(tmp_path / "x.pth", {"epoch": 3, "state_dict": state})
    model = tiny_resnet()
    report = load_weights(model, path)
    assert_equal(model, values(source))
    assert report.unused["epoch"] == "not part of 'state_dict'"


def test_backbone_into_a_segmenter(tmp_path):
    source = randomize(tiny_resnet(), 1)
    model = randomize(tiny_segmenter(projections=("c5",)), 2)
    before = values(model)
    report = load_weights(model, write(tmp_path, state_of(source, "")))
    assert_equal(model, values(source))
    rest = set(before) - set(values(source))
    assert set(report.missing) == rest
    assert_equal(model, before, rest)
    assert re.search(r"newly initialized: \d+ weights of \d+ layers", str(report))


def test_whole_network(tmp_path):
    source = randomize(tiny_segmenter(), 1)
    model = tiny_segmenter(projections=("c5",))
    report = load_weights(model, write(tmp_path, state_of(source)))
    assert_equal(model, values(source))
    assert {path.split("_")[0] for path in report.missing} == {"embedding"}
    assert report.conventions == (
        "ResNet of timm, torchvision or mmsegmentation",
        "DeepLabV3 of torchvision",
    )


def test_whole_network_for_its_backbone(tmp_path):
    source = randomize(tiny_segmenter(), 1)
    path = write(tmp_path, state_of(source))
    backbone = tiny_resnet()
    report = load_weights(backbone, path)
    assert_equal(backbone, values(source), values(backbone))
    assert report.unused["classifier.4.bias"] == "head, and only the backbone is loaded"

    model = randomize(tiny_segmenter(7), 2)
    before = values(model)
    load_weights(model, path, backbone_only=True)
    assert_equal(model, values(source), values(backbone))
    assert_equal(model, before, set(before) - set(values(backbone)))


def test_head_that_kseg_does_not_have(tmp_path):
    source = randomize(tiny_resnet(), 1)
    state = {**state_of(source), "decode_head.linear_fuse.conv.weight": np.zeros((2, 2, 1, 1))}
    path = write(tmp_path, state)
    report = load_weights(tiny_resnet(), path)
    assert "decode_head.linear_fuse.conv.weight" in report.unused
    with pytest.raises(UserError, match=r"decode_head\.linear_fuse\.conv\.weight: no rule"):
        load_weights(tiny_segmenter(), path)


def test_classifier_of_other_classes(tmp_path):
    source = randomize(tiny_segmenter(21), 1)
    model = randomize(tiny_segmenter(3), 2)
    before = values(model)
    report = load_weights(model, write(tmp_path, state_of(source)))
    classifiers = {path for path in before if path.split("/")[0].endswith("logits")}
    assert len(classifiers) == 4
    assert set(report.missing) == classifiers
    assert_equal(model, before, classifiers)
    assert_equal(model, values(source), set(before) - classifiers)
    reason = "classifier of 21 classes, where the model has 3"
    assert report.unused["aux_classifier.4.weight"] == reason
    assert "newly initialized: 4 weights of deeplabv3_" in str(report)


def test_bias_before_a_batch_norm_is_folded(tmp_path):
    # RegionContrast's auxiliary head has a bias, which the batch norm cancels.
    source = randomize(tiny_segmenter(), 1)
    state = state_of(source)
    bias = np.array([0.5, -1.0, 2.0, 0.25], "float32")
    state["aux_classifier.0.bias"] = bias
    model = tiny_segmenter()
    report = load_weights(model, write(tmp_path, state))
    mean = "deeplabv3_aux_fusion/normalization/moving_mean"
    assert report.folded == {"aux_classifier.0.bias": mean}
    np.testing.assert_allclose(values(model)[mean], values(source)[mean] - bias, rtol=1e-6)
    assert "folded: aux_classifier.0.bias" in str(report)


def test_checkpoint_of_region_contrast(tmp_path):
    source = randomize(tiny_segmenter(variant="v1c", project=False), 1)
    state = state_of(source, "encoder.", REGION_CONTRAST)
    state = {f"module.{name}": tensor(array) for name, array in state.items()}
    state["module.auxor.aux.0.bias"] = tensor(np.zeros(4, "float32"))
    for label in range(3):
        state[f"module.decoder.queue{label}"] = tensor(np.ones((4, 9), "float32"))
        state[f"module.decoder.ptr{label}"] = tensor(np.zeros(1, "int64"))
    path = write_zip(tmp_path / "x.pth", {"epoch": 3, "model_state": state})
    model = tiny_segmenter(variant="v1c", project=False)
    report = load_weights(model, path)
    assert_equal(model, values(source))
    assert not report.missing
    assert report.unused["module.decoder.queue2"] == "memory of training"
    assert report.conventions[-1] == "DeepLabV3 of RegionContrast"


def drop(name):
    return lambda state: state.pop(name)


def put(name, array):
    return lambda state: state.update({name: array})


@pytest.mark.parametrize(
    "change, message",
    [
        (drop("backbone.layer2.0.bn1.weight"), "layer2_0_conv1/normalization/gamma: no array"),
        (drop("classifier.1.weight"), "deeplabv3_fusion/convolution/kernel: no array"),
        (drop("aux_classifier.4.bias"), "deeplabv3_aux_logits/bias: no array"),
        (put("backbone.layer2.0.gate", np.zeros(1)), r"layer2\.0\.gate: no rule for its name"),
        (
            put("backbone.layer2.1.bn1.weight", np.zeros(3)),
            "the model has no weight layer2_1_conv1/normalization/gamma",
        ),
        (
            put("backbone.bn1.bias", np.zeros(64)),
            r"backbone\.bn1\.bias: shape \(64,\), but conv1/normalization/beta has \(4,\)",
        ),
        (
            put("backbone.conv1.weight", np.zeros((4, 3, 3, 3))),
            r"shape \(4, 3, 3, 3\) becomes \(3, 3, 3, 4\), but conv1/convolution/kernel has \(7, 7",
        ),
        (put("bn1.bias", np.zeros(4)), "conv1/normalization/beta is already taken by"),
        (put("classifier.4.bias", np.array([0, np.nan, 0])), "has values that are not finite"),
        (put("backbone.conv1.bias", np.zeros(9)), "the model's convolution has no bias"),
    ],
)
def test_nothing_is_loaded_unless_all_fits(change, message, tmp_path):
    state = state_of(randomize(tiny_segmenter(), 1))
    change(state)
    model = randomize(tiny_segmenter(), 2)
    before = values(model)
    with pytest.raises(UserError, match=f"does not fit 'segmenter'.*{message}") as caught:
        load_weights(model, write(tmp_path, state))
    assert "\n" not in str(caught.value)
    assert_equal(model, before)


def test_what_may_be_left_out(tmp_path):
    state = state_of(randomize(tiny_segmenter(), 1))
    state = {name: array for name, array in state.items() if not name.startswith("aux_classifier")}
    state["module.extra.weight"] = np.zeros(2)
    path = write(tmp_path, state)
    model = tiny_segmenter()
    report = load_weights(model, path, ignore=[r"extra\."], allow_missing=["deeplabv3_aux_"])
    assert {path.split("/")[0] for path in report.missing} == {
        "deeplabv3_aux_fusion",
        "deeplabv3_aux_logits",
    }
    assert report.unused["module.extra.weight"] == r"ignored by 'extra\\.'"


def test_custom_names(tmp_path):
    source = randomize(tiny_resnet(), 1)
    state = {f"module.my_{name}": array for name, array in state_of(source, "").items()}

    def name_map(name):
        from kseg.weights.resnet import name_map

        return name_map(name.removeprefix("my_"))

    model = tiny_resnet()
    load_weights(model, write(tmp_path, state), name_map=name_map)
    assert_equal(model, values(source))


def test_another_network(tmp_path):
    path = write(tmp_path, state_of(tiny_resnet()))
    backbone = tiny_networks.tiny_hrnet()
    with pytest.raises(UserError, match=r"\(ResNet of timm.*\) does not fit 'hrnet'"):
        load_weights(backbone, path)
    write(tmp_path, {"visual.proj": np.zeros(3)}, "y.npz")
    with pytest.raises(UserError, match=r"unknown names: visual\.proj\. Known: HRNet"):
        load_weights(backbone, tmp_path / "y.npz")
    write(tmp_path, {"other/kernel": np.zeros(3)}, "z.npz")
    with pytest.raises(UserError, match="for another network: none of its 1 arrays"):
        load_weights(backbone, tmp_path / "z.npz")
    np.savez(tmp_path / "none.npz")
    with pytest.raises(UserError, match="holds no arrays"):
        load_weights(backbone, tmp_path / "none.npz")
    with pytest.raises(
        UserError, match=r"must be a file, hf://owner/name.*Received: gs://x/y\.npz"
    ):
        load_weights(backbone, "gs://x/y.npz")


def test_v1c_and_v1d_are_told_apart(tmp_path):
    # All shapes agree; only the names show that the shortcuts average first.
    source = randomize(tiny_resnet(variant="v1c"), 1)
    state = state_of(source, "")
    path = write(tmp_path, state)
    model = tiny_resnet(variant="v1c")
    load_weights(model, path)
    assert_equal(model, values(source))
    with pytest.raises(UserError, match=r"downsample\.0\.weight: no rule for its name"):
        load_weights(tiny_resnet(variant="v1d"), path)

    shifted = {
        re.sub(r"downsample\.(\d)", lambda match: f"downsample.{int(match[1]) + 1}", name): array
        for name, array in state.items()
    }
    write(tmp_path, shifted)
    model = tiny_resnet(variant="v1d")
    load_weights(model, path)
    assert_equal(model, values(source))
    with pytest.raises(UserError, match=r"downsample\.2\.weight: no rule for its name"):
        load_weights(tiny_resnet(variant="v1c"), path)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_weights_of_keras(suffix, tmp_path):
    source = randomize(tiny_segmenter(5, projections=("c5",)), 1)
    path = tmp_path / f"x{suffix}"
    source.save(path) if suffix == ".keras" else source.save_weights(path)

    model = tiny_segmenter(5, projections=("c5",))
    report = load_weights(model, path)
    assert_equal(model, values(source))
    assert not report.missing

    without = tiny_segmenter(5)
    report = load_weights(without, path)
    assert_equal(without, values(source), values(without))
    assert set(report.unused.values()) >= {"projector, which the model does not have"}

    backbone = tiny_resnet()
    report = load_weights(backbone, path)
    assert_equal(backbone, values(source), values(backbone))
    assert "not part of the backbone" in report.unused.values()

    other = tiny_segmenter(2)
    report = load_weights(other, path)
    assert {path.split("/")[0] for path in report.missing} == {
        "deeplabv3_logits",
        "deeplabv3_aux_logits",
    }


def test_backbone_of_keras_into_a_segmenter(tmp_path):
    source = randomize(tiny_resnet(), 1)
    source.save_weights(tmp_path / "x.weights.h5")
    model = tiny_segmenter()
    report = load_weights(model, tmp_path / "x.weights.h5")
    assert_equal(model, values(source))
    assert all(path.startswith("deeplabv3_") for path in report.missing)
    with pytest.raises(UserError, match="for another network"):
        x = keras.Input((2,))
        dense = keras.Model(x, keras.layers.Dense(1, name="dense")(x))
        load_weights(dense, tmp_path / "x.weights.h5")


def test_checkpoint_of_a_run(tmp_path):
    source = randomize(tiny_segmenter(projections=("c5",)), 1)
    variables = checkpoints.model_variables(source)
    variables["optimizer/iteration"] = keras.Variable(3, name="iteration")
    checkpoints.save(tmp_path / "best.npz", variables, {"step": 3})
    model = tiny_segmenter()
    report = load_weights(model, tmp_path / "best.npz")
    assert_equal(model, values(source), values(model))
    assert report.unused["optimizer/iteration"] == "state of training"
    assert "meta.json" in report.unused


@pytest.mark.parametrize("prefix", ["", "model."])
def test_official_hrnet_with_ocr(prefix, tmp_path):
    golden = Golden("hrnet_official_ocr")
    stages = [golden.meta["cfg"]["MODEL"]["EXTRA"][f"STAGE{stage}"] for stage in (1, 2, 3, 4)]
    backbone = build_hrnet(
        channels=stages[3]["NUM_CHANNELS"],
        modules=[stage["NUM_MODULES"] for stage in stages[1:]],
        blocks=[stage["NUM_BLOCKS"][0] for stage in stages[1:]],
        stage1_channels=stages[0]["NUM_CHANNELS"][0],
        stage1_blocks=stages[0]["NUM_BLOCKS"][0],
        align_corners=True,
    )
    arguments = {"channels": 16, "key_channels": 8, "align_corners": True}
    segmenter = build_segmenter(backbone, "ocr", 5, head_arguments=arguments)
    state = {f"{prefix}{name}": array for name, array in golden.state.items()}
    state["loss.criterion.weight"] = np.ones(5)  # These checkpoints contain the loss as well.
    report = load_weights(segmenter, write(tmp_path, state))
    assert not report.missing
    assert report.unused["loss.criterion.weight"] == "part of the loss"
    np.testing.assert_array_equal(
        values(segmenter)["ocr_logits/kernel"][0, 0].T, golden.state["cls_head.weight"][:, :, 0, 0]
    )


def test_preset_of_keras_cv(monkeypatch):
    source = randomize(tiny_resnet(), 1)
    arrays = {**values(source), "top_conv/kernel": np.zeros(3)}
    monkeypatch.setattr(
        "kseg.weights.loading.read_keras_cv_preset", lambda name: Checkpoint(arrays, {})
    )
    model = tiny_segmenter()
    report = load_weights(model, "keras_cv://some_imagenet")
    assert_equal(model, values(source))
    assert report.unused == {"top_conv/kernel": "not part of the stages of the backbone"}
    assert report.conventions == ("keras-cv",)


STAGES = {"c2": "stage1", "c3": "stage2", "c4": "stage3", "c5": "stage4"}


def golden_swin(golden, **arguments):
    settings = dict(golden.meta.get("kw") or golden.meta["cfg"])
    settings = settings.get("backbone", settings)
    names = ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio")
    return build_swin(**{name: settings[name] for name in names}, **arguments)


@pytest.mark.parametrize("golden", ["swin_hf", "swin_official", "swin_timm"])
def test_swin(golden, tmp_path):
    golden = Golden(golden)
    backbone = golden_swin(golden, output_norms="timm" not in golden.meta["library"])
    report = load_weights(backbone, write(tmp_path, golden.state))
    assert not report.missing
    for case in golden.cases:
        golden.compare(case, backbone, STAGES)


@pytest.mark.parametrize("code", ["hf", "official"])
def test_swin_of_classification_has_no_output_norms(code, tmp_path):
    golden = Golden(f"swin_{code}")
    classifier = {
        "hf": {"swin.layernorm.weight": 64, "swin.layernorm.bias": 64, "classifier.weight": 64},
        "official": {"norm.weight": 64, "norm.bias": 64, "head.weight": 64},
    }[code]
    norms = re.compile(r"hidden_states_norms\.|norm[0-3]\.")
    prefix = "swin." if code == "hf" else ""
    state = {prefix + name: array for name, array in golden.state.items() if not norms.match(name)}
    state.update({name: np.ones(size, "float32") for name, size in classifier.items()})
    state[f"{prefix}layers.0.blocks.1.attn_mask"] = np.zeros((4, 49, 49), "float32")
    path = write_zip(
        tmp_path / "x.pth", {"model": {name: tensor(array) for name, array in state.items()}}
    )
    backbone = randomize(golden_swin(golden), 2)
    before = values(backbone)
    report = load_weights(backbone, path)
    assert report.missing == [path for path in before if re.match("norm[0-3]/", path)]
    assert len(report.missing) == 8
    assert_equal(backbone, before, report.missing)
    for name in classifier:
        assert report.unused[name] == "classifier of the pretraining"
    assert "follows from the size of windows and images" in report.unused.values()

    # A file with only some of them is damaged, not a classifier's.
    state["norm0.weight"] = np.ones(8, "float32")
    with pytest.raises(UserError, match="norm0/beta: no array"):
        load_weights(backbone, write(tmp_path, state))


def test_swin_of_other_windows(tmp_path):
    golden = Golden("swin_official")
    golden.meta["kw"]["window_size"] = 4
    with pytest.raises(UserError, match=r"bias_table: shape \(169, 1\), but .* has \(49, 1\)"):
        load_weights(golden_swin(golden), write(tmp_path, golden.state))


def test_arrays_that_do_not_go_together(tmp_path):
    state = Golden("swin_hf").state
    name = next(name for name in state if name.endswith("attention.self.key.weight"))
    state[name] = np.ones((3, 3, 3), "float32")
    with pytest.raises(UserError, match="arrays of impossible shapes"):
        load_weights(golden_swin(Golden("swin_hf")), write(tmp_path, state))


def test_upernet_on_swin(tmp_path):
    golden = Golden("upernet_swin_hf")
    backbone = golden_swin(golden)
    backbone.mean, backbone.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    arguments = {"channels": 16, "aux_channels": 8}
    segmenter = build_segmenter(backbone, "upernet", 5, head_arguments=arguments)
    report = load_weights(segmenter, write(tmp_path, golden.state))
    assert not report.missing
    names = {"logits": "logits_lowres", "aux_logits": "aux_logits_lowres"}
    for case in golden.cases:
        golden.compare(case, segmenter, names)

    # For other classes, by way of Keras' own file.
    segmenter.save_weights(tmp_path / "x.weights.h5")
    other = build_segmenter(golden_swin(golden), "upernet", 7, head_arguments=arguments)
    report = load_weights(other, tmp_path / "x.weights.h5")
    assert_equal(other, values(segmenter), report.loaded.values())
    assert {path.split("/")[0] for path in report.missing} == {
        "upernet_logits",
        "upernet_aux_logits",
    }
