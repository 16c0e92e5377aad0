# Swin with the parameters and MACs of SG-Former `t` (docs/study.md, "The peers").
peer = dict(
    type='mmpretrain.SwinTransformer',
    arch=dict(embed_dims=32, depths=[2, 2, 7, 1], num_heads=[1, 2, 4, 8]),
    drop_path_rate=0.1,
    out_indices=(0, 1, 2, 3),
    pad_small_map=True,
)
channels = [32, 64, 128, 256]
