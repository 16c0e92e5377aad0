_base_ = 'sgformer-s_semantic-fpn_8xb2-80k_ade20k-512x512.py'
model = dict(backbone=dict(arch='m'))
