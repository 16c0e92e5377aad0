_base_ = 'mask-rcnn_sgformer-t_fpn_nuclei.py'
model = dict(backbone=dict(arch='s'), neck=dict(in_channels=[64, 128, 256, 512]))
