_base_ = [
    '../_base_/models/retinanet_sgformer_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_1x.py',
    '../_base_/mmdet_runtime.py',
]
model = dict(backbone=dict(arch='s', drop_path_rate=0.2))
