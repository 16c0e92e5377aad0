# ConvNeXt with the parameters and MACs of SG-Former `t` (docs/study.md, "The peers").
peer = dict(
    type='mmpretrain.ConvNeXt',
    arch=dict(depths=[4, 8, 10, 1], channels=[32, 64, 128, 256]),
    drop_path_rate=0.1,
    out_indices=(0, 1, 2, 3),
    gap_before_final_norm=False,
)
channels = [32, 64, 128, 256]
