# ResNet-18 with the stem of V1c, and the parameters and MACs of SG-Former `t` (docs/study.md, "The peers").
peer = dict(
    type='mmpretrain.ResNetV1c',
    depth=18,
    stem_channels=48,
    base_channels=30,
    drop_path_rate=0.1,
    out_indices=(0, 1, 2, 3),
)
channels = [30, 60, 120, 240]
