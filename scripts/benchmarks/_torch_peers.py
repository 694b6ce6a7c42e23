"""Times networks of PyTorch, for `models.py` and `serving.py`. Needs torch and timm, not kseg.

    _torch_peers.py backbone NAME HEIGHT WIDTH BATCH ROUNDS THREADS

prints one line of JSON: seconds of a forward pass and of a training step, the shortest of the
rounds.

    _torch_peers.py segmenter NAME HEIGHT WIDTH CLASSES THREADS KIND

times the forward pass of a whole network on request, see `_measuring.TimedProcess`.
"""

import functools
import json
import sys
import time

import timm
import torch
from _measuring import time_on_request
from torch import nn
from torch.nn import functional

NAMES = {
    "hrnet_w48": "hrnet_w48",
    "resnet101": "resnet101",
    "resnet18": "resnet18",
    "swin_t": "swin_tiny_patch4_window7_224",
}


def hrnet_branches(model, image):
    """The four branches of timm's HRNet; its classifier's convolutions are left out."""
    x = model.act1(model.bn1(model.conv1(image)))
    x = model.act2(model.bn2(model.conv2(x)))
    return model.stages(x)


def conv_norm(inputs, filters, size, dilation=1, bias=False):
    padding = dilation * (size // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, filters, size, padding=padding, dilation=dilation, bias=bias),
        nn.BatchNorm2d(filters),
        nn.ReLU(inplace=True),
    )


def enlarge(x, like):
    return functional.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


class Segmenter(nn.Module):
    """Maps pixels of 0 to 255 to logits at image size, like kseg's inference model."""

    def __init__(self, num_classes, features):
        super().__init__()
        self.classifier = nn.Conv2d(features, num_classes, 1)
        mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1))
        self.register_buffer("scale", 1 / torch.tensor(std).reshape(3, 1, 1))

    def forward(self, image):
        x = self.features((image - self.mean) * self.scale)
        return enlarge(self.classifier(x), like=image)


class DeepLabV3(Segmenter):
    """ResNet-101 of output stride 8 with ASPP, as `deeplabv3_r101` of `_networks.py`."""

    def __init__(self, num_classes, backbone="resnet101c", width=256):
        super().__init__(num_classes, width)
        self.backbone = timm.create_model(backbone, num_classes=0, output_stride=8)
        deepest = self.backbone.num_features
        self.mean_branch = conv_norm(deepest, width, 1)
        self.branches = nn.ModuleList(
            [
                conv_norm(deepest, width, 1),
                *(conv_norm(deepest, width, 3, rate) for rate in (12, 24, 36)),
            ]
        )
        self.fusion = conv_norm(5 * width, width, 3)

    def features(self, image):
        x = self.backbone.forward_features(image)
        mean = self.mean_branch(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return self.fusion(torch.cat([mean, *(branch(x) for branch in self.branches)], 1))


class HRNet(Segmenter):
    """HRNet-W48 with its plain head, as `hrnet_w48` of `_networks.py`."""

    def __init__(self, num_classes):
        channels = (48, 96, 192, 384)
        super().__init__(num_classes, sum(channels))
        self.backbone = timm.create_model("hrnet_w48", num_classes=0, head="")
        for module in self.backbone.modules():
            if isinstance(module, nn.Upsample):  # timm upsamples by nearest neighbour.
                module.mode, module.align_corners = "bilinear", False
        self.fusion = conv_norm(sum(channels), sum(channels), 1, bias=True)

    def features(self, image):
        branches = hrnet_branches(self.backbone, image)
        finest = branches[0]
        return self.fusion(torch.cat([enlarge(x, like=finest) for x in branches], 1))


SEGMENTERS = {
    "deeplabv3_r101": DeepLabV3,
    "hrnet_w48": HRNet,
    "deeplabv3_toy": functools.partial(DeepLabV3, backbone="resnet18", width=16),
}


def time_segmenter(name, height, width, num_classes, threads, kind):
    """Times the forward pass of a network on request; the arguments are str."""
    torch.set_num_threads(int(threads))
    image = torch.randint(0, 256, (1, 3, int(height), int(width))).float()

    def prepare():
        model = SEGMENTERS[name](int(num_classes)).eval()
        weights = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        images = image
        if "channels_last" in kind:
            model = model.to(memory_format=torch.channels_last)
            images = image.contiguous(memory_format=torch.channels_last)
        if "traced" in kind:
            model = torch.jit.optimize_for_inference(torch.jit.trace(model, images))
        return lambda: model(images), {"weights": weights}

    with torch.inference_mode():
        time_on_request(prepare)


def time_backbone(name, *numbers):
    """Prints the seconds of a backbone's forward pass and training step; the arguments are str."""
    height, width, batch, rounds, threads = map(int, numbers)
    torch.set_num_threads(threads)
    arguments = {"img_size": (height, width)} if name.startswith("swin") else {}
    if name == "resnet101":
        arguments = {"output_stride": 8}
    if name.startswith("hrnet"):
        arguments = {"head": ""}  # The four branches, without the classifier's convolutions.
    model = timm.create_model(NAMES[name], pretrained=False, num_classes=0, **arguments)
    forward = model.forward_features
    if name.startswith("hrnet"):

        def forward(image):
            return hrnet_branches(model, image)

    image = torch.randn(batch, 3, height, width)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)

    def predict():
        with torch.no_grad():
            forward(image)

    def train():
        outputs = forward(image)
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        loss = sum(output.float().square().mean() for output in outputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    found = {}
    for key, function, training in (("forward", predict, False), ("step", train, True)):
        model.train(training)
        times = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        found[key] = min(times[1:])
    print(json.dumps(found))


if __name__ == "__main__":
    {"backbone": time_backbone, "segmenter": time_segmenter}[sys.argv[1]](*sys.argv[2:])
