_base_ = 'sgformer-s_semantic-fpn_8xb2-80k_ade20k-512x512.py'
model = dict(
    backbone=dict(arch='b', drop_path_rate=0.4),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
