peer = dict(
    type='mmpretrain.SwinTransformer',
    arch='tiny',
    drop_path_rate=0.1,
    out_indices=(0, 1, 2, 3),
    pad_small_map=True,
)
channels = [96, 192, 384, 768]
