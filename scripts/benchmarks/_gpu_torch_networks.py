"""Segmentation networks in PyTorch on timm's backbones, the baselines of kseg's.

The layers are those of kseg's heads, with the same widths, so that the arithmetic is the same.
"""

import _gpu_shared as shared
import timm
import torch
from _torch_peers import conv_norm, enlarge, hrnet_branches
from torch import nn
from torch.nn import functional


class HRNetBackbone(nn.Module):
    channels = (48, 96, 192, 384)

    def __init__(self, name="hrnet_w48"):
        super().__init__()
        self.body = timm.create_model(name, num_classes=0, head="")
        for module in self.body.modules():
            if isinstance(module, nn.Upsample):  # timm's are of the nearest neighbour.
                module.mode, module.align_corners = "bilinear", False

    def forward(self, image):
        return hrnet_branches(self.body, image)


class Pyramid(nn.Module):
    """The four stages of a backbone of timm."""

    def __init__(self, name, **arguments):
        super().__init__()
        self.body = timm.create_model(name, features_only=True, **arguments)
        self.channels = tuple(self.body.feature_info.channels())[-4:]
        self._last = name.startswith("swin")  # Channels last, as a rank-4 map.

    def forward(self, image):
        stages = list(self.body(image))[-4:]
        return [x.movedim(-1, 1) for x in stages] if self._last else stages


def concatenated(stages):
    return torch.cat([stages[0], *(enlarge(x, like=stages[0]) for x in stages[1:])], 1)


class HRNetHead(nn.Module):
    def __init__(self, channels, classes, **_):
        super().__init__()
        self.width = sum(channels)
        self.fusion = conv_norm(self.width, self.width, 1, bias=True)
        self.classifier = nn.Conv2d(self.width, classes, 1)

    def forward(self, stages):
        x = self.fusion(concatenated(stages))
        return {"logits": self.classifier(x), "features": x}


class OCRHead(nn.Module):
    def __init__(self, channels, classes, width=512, key_width=256):
        super().__init__()
        total = sum(channels)
        self.width, self.scale = width, key_width**-0.5
        self.coarse = nn.Sequential(
            conv_norm(total, total, 1, bias=True), nn.Conv2d(total, classes, 1)
        )
        self.pixels = conv_norm(total, width, 3, bias=True)
        self.query = nn.Sequential(
            conv_norm(width, key_width, 1), conv_norm(key_width, key_width, 1)
        )
        self.key = nn.Sequential(conv_norm(width, key_width, 1), conv_norm(key_width, key_width, 1))
        self.value = conv_norm(width, key_width, 1)
        self.context = conv_norm(key_width, width, 1)
        self.fusion = conv_norm(2 * width, width, 1)
        self.classifier = nn.Sequential(nn.Dropout2d(0.05), nn.Conv2d(width, classes, 1))

    def forward(self, stages):
        x = concatenated(stages)
        coarse = self.coarse(x)
        pixels = self.pixels(x)
        weights = coarse.flatten(2).float().softmax(dim=2)
        objects = torch.einsum("bnp,bcp->bcn", weights, pixels.flatten(2).float())[..., None]
        query = self.query(pixels).flatten(2)
        key, value = self.key(objects)[..., 0], self.value(objects)[..., 0]
        attention = torch.einsum("bcp,bcn->bpn", query, key).float() * self.scale
        attention = attention.softmax(dim=-1).to(value.dtype)
        context = torch.einsum("bpn,bcn->bcp", attention, value)
        context = self.context(context.reshape(len(x), -1, *x.shape[-2:]))
        x = self.fusion(torch.cat([context, pixels], 1))
        return {"logits": self.classifier(x), "aux_logits": coarse, "features": x}


def auxiliary(channels, classes, width):
    return nn.Sequential(
        conv_norm(channels, width, 3), nn.Dropout2d(0.1), nn.Conv2d(width, classes, 1)
    )


class DeepLabV3Head(nn.Module):
    def __init__(self, channels, classes, width=256):
        super().__init__()
        self.width = width
        self.mean = conv_norm(channels[-1], width, 1)
        self.branches = nn.ModuleList(
            [
                conv_norm(channels[-1], width, 1),
                *(conv_norm(channels[-1], width, 3, rate) for rate in (12, 24, 36)),
            ]
        )
        self.fusion = conv_norm(5 * width, width, 3)
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(width, classes, 1))
        self.auxiliary = auxiliary(channels[-2], classes, width)

    def forward(self, stages):
        x = stages[-1]
        mean = self.mean(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        x = self.fusion(torch.cat([mean, *(branch(x) for branch in self.branches)], 1))
        return {
            "logits": self.classifier(x),
            "aux_logits": self.auxiliary(stages[-2]),
            "features": x,
        }


class UPerNetHead(nn.Module):
    def __init__(self, channels, classes, width=512, aux_width=256, bins=(1, 2, 3, 6)):
        super().__init__()
        *finer, deepest = channels
        self.width, self.bins = width, bins
        self.pooled = nn.ModuleList([conv_norm(deepest, width, 1) for _ in bins])
        self.bottleneck = conv_norm(deepest + len(bins) * width, width, 3)
        self.laterals = nn.ModuleList([conv_norm(c, width, 1) for c in finer])
        self.outputs = nn.ModuleList([conv_norm(width, width, 3) for _ in finer])
        self.fusion = conv_norm(4 * width, width, 3)
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(width, classes, 1))
        self.auxiliary = auxiliary(channels[-2], classes, aux_width)

    def forward(self, stages):
        *finer, deepest = stages
        grids = [functional.adaptive_avg_pool2d(deepest, size) for size in self.bins]
        grids = [layer(x) for layer, x in zip(self.pooled, grids, strict=True)]
        x = self.bottleneck(torch.cat([deepest, *(enlarge(g, like=deepest) for g in grids)], 1))
        levels = [x]
        for stage, lateral, output in reversed(
            list(zip(finer, self.laterals, self.outputs, strict=True))
        ):
            stage = lateral(stage)
            x = stage + enlarge(x, like=stage)
            levels.insert(0, output(x))
        x = self.fusion(concatenated(levels))
        return {
            "logits": self.classifier(x),
            "aux_logits": self.auxiliary(stages[-2]),
            "features": x,
        }


def projector(channels, dim, hidden_layers):
    layers = []
    for _ in range(hidden_layers):
        layers += [nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.BatchNorm2d(channels)]
    return nn.Sequential(*layers, nn.Conv2d(channels, dim, 1))


class Segmenter(nn.Module):
    """uint8 images to a dict of maps, as `kseg.segmenters.build_segmenter` makes.

    Attributes:
        width: int, channels of `features`.
    """

    def __init__(self, backbone, head, projections, dim, hidden_layers):
        super().__init__()
        self.backbone, self.head, self.width = backbone, head, head.width
        channels = {f"c{i + 2}": c for i, c in enumerate(backbone.channels)}
        channels["features"] = head.width
        self.projectors = nn.ModuleDict(
            {name: projector(channels[name], dim, hidden_layers) for name in projections}
        )
        mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1))
        self.register_buffer("scale", 1 / torch.tensor(std).reshape(3, 1, 1))

    def forward(self, image):
        stages = self.backbone((image.float() - self.mean) * self.scale)
        outputs = self.head(stages)
        maps = {f"c{i + 2}": x for i, x in enumerate(stages)} | {"features": outputs["features"]}
        for name, layer in self.projectors.items():
            outputs[f"embedding_{name}"] = functional.normalize(layer(maps[name]).float(), dim=1)
        return outputs


def build(name, sizes, *, projections, hidden_layers):
    """Builds a network by its name in `gpu.py`.

    Args:
        name: str.
        sizes: `Sizes`; the toy sizes give toy networks.
        projections: names of the maps that get a projector.
        hidden_layers: int, of a projector.

    Returns:
        `Segmenter`.
    """
    toy = sizes is shared.TOY
    arguments = {"width": 16} if toy else {}
    if toy:
        stride = {"output_stride": 8} if name == "deeplabv3_r101" else {}
        backbone = Pyramid("resnet18", pretrained=False, **stride)
    elif name in ("hrnet_w48", "ocrnet_w48"):
        backbone = HRNetBackbone()
    elif name == "deeplabv3_r101":
        backbone = Pyramid("resnet101c", pretrained=False, output_stride=8)
    else:
        backbone = Pyramid(
            "swin_tiny_patch4_window7_224",
            pretrained=False,
            img_size=(sizes.height, sizes.width),
            drop_path_rate=0.0,
        )
    heads = {
        "hrnet_w48": HRNetHead,
        "ocrnet_w48": OCRHead,
        "deeplabv3_r101": DeepLabV3Head,
        "upernet_swin_t": UPerNetHead,
    }
    head = heads[name](backbone.channels, sizes.classes, **arguments)
    return Segmenter(backbone, head, projections, sizes.dim, hidden_layers)
