_base_ = 'cascade-mask-rcnn_sgformer-s_fpn_ms-3x_coco.py'
model = dict(backbone=dict(arch='m'))
