_base_ = [
    '../_base_/models/mask-rcnn_sgformer_fpn.py',
    '../_base_/datasets/coco_instance_ms.py',
    '../_base_/schedules/coco_3x.py',
    '../_base_/mmdet_runtime.py',
]
model = dict(backbone=dict(arch='s', drop_path_rate=0.2))
