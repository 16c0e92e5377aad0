_base_ = 'mask-rcnn_sgformer-s_fpn_1x_coco.py'
model = dict(backbone=dict(arch='m'))
