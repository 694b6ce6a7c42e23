import functools

from kseg.layers import BatchNormalization, Conv2D, UnitNormalization


def projection(x, *, embedding_dim=256, hidden_layers=2, synchronized_batch_norm=False, name):
    """Projects a feature map to embeddings of unit norm, pixel by pixel.

    Hidden layers of 1x1 convolution, ReLU and batch norm, in this order; then a linear 1x1
    convolution. The hidden width, which the papers leave open, is that of the input. The batch
    norm's momentum is 0.9 as everywhere in kseg; MS/CS' public code has 0.9997, which never settles
    in short runs.

    Sources: Pissas et al., "Multi-scale and Cross-scale Contrastive Learning for Semantic
    Segmentation", ECCV 2022, Sec. 4, "Contrastive Losses": two hidden layers. Sung et al.,
    CVPR 2024, supplement, Table 7: 0.38 M parameters, which one hidden layer for each branch of
    HRNet-W48 has.

    Args:
        x: symbolic float tensor `(batch, height, width, channels)`.
        embedding_dim: int, channels of the embeddings.
        hidden_layers: int >= 0.
        synchronized_batch_norm: bool, statistics over all replicas.
        name: str, prefix of the layers' names.

    Returns:
        symbolic float32 tensor `(batch, height, width, embedding_dim)`, rows of unit L2 norm.
    """
    conv = functools.partial(Conv2D, kernel_size=1, use_bias=True)
    for index in range(1, hidden_layers + 1):
        x = conv(x.shape[-1], activation="relu", name=f"{name}_conv{index}")(x)
        x = BatchNormalization(synchronized=synchronized_batch_norm, name=f"{name}_norm{index}")(x)
    x = conv(embedding_dim, name=f"{name}_linear")(x)
    return UnitNormalization(name=name)(x)
