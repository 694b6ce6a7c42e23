"""Published segmentation checkpoints that are files on a web site: their addresses."""

import hashlib
import pathlib
import re

_OPENMMLAB = "https://download.openmmlab.com/mmsegmentation/v0.5"
_PYTORCH = "https://download.pytorch.org/models"
_UPERNET = "upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K"
_BLOCK = 2**22  # Bytes.
_HASH = re.compile(r".*-([0-9a-f]{8})\.pth")

# Name of a file -> its address. The names of most contain the first 8 digits of their SHA-256.
ADDRESSES = {
    address.rpartition("/")[2]: address
    for address in (
        f"{_PYTORCH}/deeplabv3_resnet50_coco-cd0a2569.pth",
        f"{_PYTORCH}/deeplabv3_resnet101_coco-586e9e4e.pth",
        "https://github.com/hsfzxjy/models.storage/releases/download/HRNet-OCR/"
        "hrnet_ocr_cs_8162_torch11.pth",
        f"{_OPENMMLAB}/ocrnet/ocrnet_hr48_512x1024_160k_cityscapes/"
        "ocrnet_hr48_512x1024_160k_cityscapes_20200602_191037-dfbf1b0c.pth",
        f"{_OPENMMLAB}/swin/{_UPERNET}/{_UPERNET}_20210531_112542-e380ad3e.pth",
        f"{_OPENMMLAB}/deeplabv3/deeplabv3_r50-d8_512x1024_80k_cityscapes/"
        "deeplabv3_r50-d8_512x1024_80k_cityscapes_20200606_113404-b92cfdd4.pth",
    )
}


def where_to_find(path):
    """Says where a missing file can be downloaded.

    Args:
        path: of a file of weights.

    Returns:
        str, the end of an error message; empty if the file's name is not in `ADDRESSES`.
    """
    address = ADDRESSES.get(pathlib.PurePath(path).name)
    return f". Download {address} to it" if address else ""


def differs_from_published(path):
    """Compares a published file with the checksum in its name.

    Args:
        path: of an existing file of weights.

    Returns:
        bool, True if the file has a name in `ADDRESSES` with a checksum, and another content.
    """
    path = pathlib.Path(path)
    match = _HASH.fullmatch(path.name)
    if match is None or path.name not in ADDRESSES:
        return False
    return not file_sha256(path).startswith(match[1])


def file_sha256(path):
    """Computes the SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
