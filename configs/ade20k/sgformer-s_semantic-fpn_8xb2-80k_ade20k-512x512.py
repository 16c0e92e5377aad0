_base_ = [
    '../_base_/models/semantic-fpn_sgformer.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_80k.py',
    '../_base_/mmseg_runtime.py',
]
model = dict(backbone=dict(arch='s', drop_path_rate=0.2))
