_base_ = 'retinanet_sgformer-s_fpn_1x_coco.py'
model = dict(backbone=dict(arch='m'))
