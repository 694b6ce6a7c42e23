"""The configs `finetune_*`: files with the names and the format of the published checkpoints.

The arrays are those of the golden fixtures, renamed where a code base only names them otherwise, so
that the outputs are known, too.
"""

import pathlib
import re

import numpy as np
import pytest

from kseg import backbones, config
from kseg.backbones import build_hrnet
from kseg.errors import UserError
from kseg.segmenters import build_segmenter, segmenter_from_config
from kseg.training.initialization import load_pretrained
from kseg.weights import load_weights, published
from kseg.weights.files import find_file
from tests.golden_file import Golden
from tests.weights.test_loading import golden_swin, randomize, state_of, tiny_resnet
from tests.weights.torch_writer import tensor, write_zip

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("finetune_*.json"))
CLASSES = 3  # Of the user's data; the files have other numbers.
UPERNET = {"channels": 16, "aux_channels": 8}
OCR = {"channels": 16, "key_channels": 8}
DEEPLAB = {"channels": 4, "aspp_channels": 4, "aux_channels": 4}
MMSEG_DEEPLAB = {
    "aspp_pool": ("decode_head.image_pool.1.conv", "decode_head.image_pool.1.bn"),
    "aspp_1x1": ("decode_head.aspp_modules.0.conv", "decode_head.aspp_modules.0.bn"),
    **{
        f"aspp_rate{rate}": tuple(f"decode_head.aspp_modules.{i}.{m}" for m in ("conv", "bn"))
        for i, rate in ((1, 12), (2, 24), (3, 36))
    },
    "fusion": ("decode_head.bottleneck.conv", "decode_head.bottleneck.bn"),
    "logits": ("decode_head.conv_seg", None),
    "aux_fusion": ("auxiliary_head.convs.0.conv", "auxiliary_head.convs.0.bn"),
    "aux_logits": ("auxiliary_head.conv_seg", None),
}


def golden_hrnet(align_corners=False, **arguments):
    stages = Golden("hrnet_official_ocr").meta["cfg"]["MODEL"]["EXTRA"]
    stages = [stages[f"STAGE{stage}"] for stage in (1, 2, 3, 4)]
    return build_hrnet(
        channels=stages[3]["NUM_CHANNELS"],
        modules=[stage["NUM_MODULES"] for stage in stages[1:]],
        blocks=[stage["NUM_BLOCKS"][0] for stage in stages[1:]],
        stage1_channels=stages[0]["NUM_CHANNELS"][0],
        stage1_blocks=stages[0]["NUM_BLOCKS"][0],
        align_corners=align_corners,
    )


def hugging_face():
    return Golden("upernet_swin_hf").state


def official_ocr():
    return {f"model.{name}": array for name, array in Golden("hrnet_official_ocr").state.items()}


def mmseg_ocr():
    """The official network under mmsegmentation's names, which has no biases before batch norms."""
    block = "decode_head.1.object_context_block"
    projections = {"f_pixel": "query_project", "f_object": "key_project"}
    names = {
        "aux_head": ("decode_head.0.convs.0.conv", "decode_head.0.convs.0.bn"),
        "conv3x3_ocr": ("decode_head.1.bottleneck.conv", "decode_head.1.bottleneck.bn"),
        "ocr_distri_head.conv_bn_dropout": (f"{block}.bottleneck.conv", f"{block}.bottleneck.bn"),
    }
    state, biases = {}, {}
    for name, array in Golden("hrnet_official_ocr").state.items():
        module, _, parameter = name.rpartition(".")
        if match := re.fullmatch(r"(aux_head|conv3x3_ocr)\.0\.bias", name):
            biases[names[match[1]][1]] = array
            continue
        if module == "cls_head":
            module = "decode_head.1.conv_seg"
        elif module == "aux_head.3":
            module = "decode_head.0.conv_seg"
        elif match := re.fullmatch(r".*context_block\.(f_pixel|f_object)\.(\d)(\.0)?", module):
            part = "bn" if match[3] else "conv"
            module = f"{block}.{projections[match[1]]}.{int(match[2]) // 2}.{part}"
        elif match := re.fullmatch(r".*context_block\.f_(down|up)\.\d(\.0)?", module):
            project = {"down": "value_project", "up": "out_project"}[match[1]]
            module = f"{block}.{project}.{'bn' if match[2] else 'conv'}"
        elif match := re.fullmatch(rf"({'|'.join(names)})\.([01])(\.0)?", module):
            module = names[match[1]][int(match[2])]
        else:
            module = f"backbone.{module}"
        state[f"{module}.{parameter}"] = array
    for module, bias in biases.items():  # norm(x + bias) = norm(x) with the mean less the bias.
        state[f"{module}.running_mean"] = state[f"{module}.running_mean"] - bias
    return state


def mmseg_upernet():
    """Hugging Face's network under mmsegmentation's names, with its order of merged pixels."""
    replacements = {
        r"embeddings\.patch_embeddings\.projection": "patch_embed.projection",
        r"embeddings\.norm": "patch_embed.norm",
        r"encoder\.layers": "stages",
        r"layernorm_before": "norm1",
        r"layernorm_after": "norm2",
        r"attention\.self": "attn.w_msa",
        r"attention\.output\.dense": "attn.w_msa.proj",
        r"intermediate\.dense": "ffn.layers.0.0",
        r"(blocks\.\d)\.output\.dense": r"\1.ffn.layers.1",
        r"hidden_states_norms\.stage1": "norm0",
        r"hidden_states_norms\.stage2": "norm1",
        r"hidden_states_norms\.stage3": "norm2",
        r"hidden_states_norms\.stage4": "norm3",
        r"batch_norm": "bn",
        r"_head\.classifier": "_head.conv_seg",
    }
    state = {}
    for name, array in Golden("upernet_swin_hf").state.items():
        for pattern, replacement in replacements.items():
            name = re.sub(pattern, replacement, name)
        if ".downsample." in name:  # (column, row, channel) -> (channel, row, column).
            merged = array.reshape((*array.shape[:-1], 2, 2, -1))
            array = merged.swapaxes(-1, -3).reshape(array.shape)
        state[name] = array
    for name in [name for name in state if ".w_msa.query." in name]:
        parts = [name.replace("query", part) for part in ("query", "key", "value")]
        state[name.replace("query", "qkv")] = np.concatenate([state.pop(part) for part in parts])
    return state


def deeplabv3(variant, head=None):
    arguments = {**DEEPLAB, "project": head is None}
    segmenter = build_segmenter(
        tiny_resnet(variant=variant), "deeplabv3", 21, head_arguments=arguments
    )
    state = state_of(randomize(segmenter, 1), **({"head": head} if head else {}))
    if head is None:
        return state
    renamed = {}
    for name, array in state.items():  # mmsegmentation calls the deep stem `stem`.
        name = name.replace("backbone.conv1.", "backbone.stem.")
        renamed[name.replace("backbone.bn1.", "backbone.stem.7.")] = array
    return renamed


def tiny_golden_swin(**arguments):
    return golden_swin(Golden("upernet_swin_hf"))


def resnet_v(**arguments):
    return tiny_resnet(**{k: v for k, v in arguments.items() if k in ("variant", "output_stride")})


# Config -> the small network for it: backbone, arguments of the head, arrays of the file.
NETWORKS = {
    "finetune_upernet_swin_t": (tiny_golden_swin, UPERNET, hugging_face),
    "finetune_upernet_swin_t_mmseg": (tiny_golden_swin, UPERNET, mmseg_upernet),
    "finetune_deeplabv3_r50": (resnet_v, DEEPLAB, lambda: deeplabv3("v1b")),
    "finetune_deeplabv3_r101": (resnet_v, DEEPLAB, lambda: deeplabv3("v1b")),
    "finetune_deeplabv3_r50_mmseg": (resnet_v, DEEPLAB, lambda: deeplabv3("v1c", MMSEG_DEEPLAB)),
    "finetune_ocrnet_w48": (golden_hrnet, OCR, official_ocr),
    "finetune_ocrnet_w48_mmseg": (golden_hrnet, OCR, mmseg_ocr),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_each_config_starts_from_its_file(name, tmp_path, monkeypatch, capsys):
    backbone, sizes, state = NETWORKS[name]
    overrides = [f"model.head.{key}={value}" for key, value in sizes.items()]
    experiment = config.load(name, overrides)
    monkeypatch.setitem(
        backbones.BACKBONES, experiment.model.backbone.name, lambda **a: backbone(**used(a))
    )
    source = experiment.model.weights
    file = tmp_path / (pathlib.Path(source).name if "://" not in source else "pytorch_model.bin")
    write_zip(file, {"state_dict": {key: tensor(array) for key, array in state().items()}})
    if "://" in source:
        assert re.fullmatch(r"hf://[\w-]+/[\w-]+@[0-9a-f]{40}", source)
        monkeypatch.setattr(
            "kseg.weights.loading.fetch_from_hugging_face", lambda source: str(file)
        )
    else:
        assert published.ADDRESSES[file.name].endswith(f"/{file.name}")
        experiment = config.load(name, [*overrides, f"model.weights={file}"])
    segmenter = segmenter_from_config(experiment.model, CLASSES, precision="float32")
    randomize(segmenter, 5)  # Some weights are loaded as the zeros that they begin as.
    before = {weight.path: weight.numpy() for weight in segmenter.weights}
    load_pretrained(segmenter, experiment.model)
    captured = capsys.readouterr()
    kept = {
        weight.path.split("/")[0]
        for weight in segmenter.weights
        if np.array_equal(weight.numpy(), before[weight.path])
    }
    head = experiment.model.head.name
    assert kept == {f"{head}_logits", f"{head}_aux_logits"}, captured.out
    assert "newly initialized: 4 weights" in captured.out
    # The name of the file promises a checksum, which ours does not have.
    assert ("does not have the checksum in its name" in captured.err) == bool(
        re.search(r"-[0-9a-f]{8}\.pth$", source)
    )


def used(arguments):
    keys = ("align_corners", "variant", "output_stride")
    return {key: value for key, value in arguments.items() if key in keys}


@pytest.mark.parametrize("state", [hugging_face, mmseg_upernet])
def test_outputs_of_upernet(state, tmp_path):
    golden = Golden("upernet_swin_hf")
    backbone = golden_swin(golden)
    backbone.mean, backbone.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    segmenter = build_segmenter(backbone, "upernet", 5, head_arguments=UPERNET)
    np.savez(tmp_path / "x.npz", **state())
    assert not load_weights(segmenter, tmp_path / "x.npz").missing
    golden.compare("", segmenter, {"logits": "logits_lowres", "aux_logits": "aux_logits_lowres"})


@pytest.mark.parametrize("state", [official_ocr, mmseg_ocr])
def test_outputs_of_ocr(state, tmp_path):
    golden = Golden("hrnet_official_ocr")
    backbone = golden_hrnet()
    backbone.mean, backbone.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    segmenter = build_segmenter(backbone, "ocr", 5, head_arguments=OCR)
    np.savez(tmp_path / "x.npz", **state())
    assert not load_weights(segmenter, tmp_path / "x.npz").missing
    # The case without align_corners.
    golden.compare("case2/", segmenter, {"logits": "logits", "aux_logits": "aux_logits"})


@pytest.mark.parametrize("name", published.ADDRESSES)
def test_a_missing_file_is_one_line_with_its_address(name, tmp_path):
    with pytest.raises(UserError) as caught:
        find_file(tmp_path / name)
    assert f"Download {published.ADDRESSES[name]} to it" in str(caught.value)
    assert published.where_to_find("mine.pth") == ""


def test_the_checksum_in_a_name(tmp_path, monkeypatch):
    file = tmp_path / "net-ba7816bf.pth"  # SHA-256 of "abc", FIPS 180-2, appendix B.1.
    file.write_bytes(b"abc")
    monkeypatch.setitem(published.ADDRESSES, file.name, "https://example.org/net")
    assert not published.differs_from_published(file)
    file.write_bytes(b"abd")
    assert published.differs_from_published(file)
    assert not published.differs_from_published(tmp_path / "other-ba7816bf.pth")
