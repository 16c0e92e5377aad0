# PVTv2 with the parameters and MACs of SG-Former `t` (docs/study.md, "The peers").
peer = dict(
    type='mmdet.PyramidVisionTransformerV2',
    embed_dims=32,
    num_layers=[2, 4, 2, 1],
    num_heads=[1, 2, 4, 8],
    drop_path_rate=0.1,
)
channels = [32, 64, 128, 256]
