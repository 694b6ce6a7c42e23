"""Writes fixtures/torch_zip.pth and torch_legacy.pth: python tests/weights/make_torch_fixtures.py

Needs PyTorch, which the tests that read the files do not.
"""

import pathlib

import torch

kernel = torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2)
module = torch.nn.Module()
module.conv = torch.nn.Conv2d(3, 2, 2)
with torch.no_grad():
    module.conv.weight.copy_(kernel)
    module.conv.bias.copy_(torch.tensor([0.5, -0.25]))
state = module.state_dict()  # An OrderedDict with metadata.
state["tied"] = state["conv.weight"]
state["half"] = torch.tensor([1.5, 2.0], dtype=torch.float16)
state["bfloat16"] = torch.tensor([1.0, -3.0], dtype=torch.bfloat16)
state["transposed"] = torch.arange(6, dtype=torch.float64).reshape(2, 3).T
state["channels_last"] = kernel.clone().contiguous(memory_format=torch.channels_last)
state["slice"] = torch.arange(6)[3:5]
state["flag"] = torch.tensor(True)
state["empty"] = torch.zeros(0, 2)

optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
checkpoint = {"epoch": 3, "state_dict": state, "optimizer": optimizer.state_dict()}
folder = pathlib.Path(__file__).parent / "fixtures"
torch.save(checkpoint, folder / "torch_zip.pth")
torch.save(checkpoint, folder / "torch_legacy.pth", _use_new_zipfile_serialization=False)
