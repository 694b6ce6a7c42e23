"""The projector of contrastive learning, from a feature map to embeddings."""

import functools

from kseg.layers import BatchNormalization, Conv2D, UnitNormalization


def projection(x, *, embedding_dim=256, hidden_layers=2, synchronized_batch_norm=False, name):
    """Projects a feature map to embeddings of unit norm, pixel by pixel.

    Each hidden layer is a 1x1 convolution, ReLU and batch norm, in this order; a linear 1x1
    convolution follows. The hidden width, which the papers do not specify, is that of the input.
    The batch norm's momentum is 0.9 as everywhere in kseg; the public code of MS/CS has 0.9997,
    which does not converge in short runs.

    Sources: Pissas et al., "Multi-scale and Cross-scale Contrastive Learning for Semantic
    Segmentation", ECCV 2022, Sec. 4, "Contrastive Losses": two hidden layers. Sung et al.,
    CVPR 2024, supplement, Table 7: 0.38 M parameters, which matches one hidden layer for each
    branch of HRNet-W48.

    Args:
        x: symbolic float tensor `(batch, height, width, channels)`.
        embedding_dim: int, channels of the embeddings.
        hidden_layers: int >= 0.
        synchronized_batch_norm: bool, whether batch-norm statistics span all replicas.
        name: str, prefix of the layer names.

    Returns:
        symbolic float32 tensor `(batch, height, width, embedding_dim)`, rows of unit L2 norm.
    """
    conv = functools.partial(Conv2D, kernel_size=1, use_bias=True)
    for index in range(1, hidden_layers + 1):
        x = conv(x.shape[-1], activation="relu", name=f"{name}_conv{index}")(x)
        x = BatchNormalization(synchronized=synchronized_batch_norm, name=f"{name}_norm{index}")(x)
    x = conv(embedding_dim, name=f"{name}_linear")(x)
    return UnitNormalization(name=name)(x)
