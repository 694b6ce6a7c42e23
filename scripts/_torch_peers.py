"""Times a network of timm, for `benchmark.py models --torch`. Needs torch and timm, not kseg.

Prints one line of JSON: seconds of a forward pass and of a training step, the best of the rounds.
"""

import json
import sys
import time

import timm
import torch

NAMES = {
    "hrnet_w48": "hrnet_w48",
    "resnet101": "resnet101",
    "swin_t": "swin_tiny_patch4_window7_224",
}


def main():
    name, height, width, batch, rounds, threads = sys.argv[1], *map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    arguments = {"img_size": (height, width)} if name.startswith("swin") else {}
    if name.startswith("resnet"):
        arguments = {"output_stride": 8}
    if name.startswith("hrnet"):
        arguments = {"head": ""}  # The four branches, without the classifier's convolutions.
    model = timm.create_model(NAMES[name], pretrained=False, num_classes=0, **arguments)
    forward = model.forward_features
    if name.startswith("hrnet"):

        def forward(image):
            x = model.act1(model.bn1(model.conv1(image)))
            x = model.act2(model.bn2(model.conv2(x)))
            return model.stages(x)

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
    main()
