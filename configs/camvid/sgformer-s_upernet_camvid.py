_base_ = 'sgformer-t_upernet_camvid.py'
model = dict(
    backbone=dict(arch='s'),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
