# With the norm before pooling it would return vectors, not maps.
peer = dict(
    type='mmpretrain.HorNet',
    arch='tiny',
    drop_path_rate=0.1,
    out_indices=(0, 1, 2, 3),
    gap_before_final_norm=False,
)
channels = [64, 128, 256, 512]
