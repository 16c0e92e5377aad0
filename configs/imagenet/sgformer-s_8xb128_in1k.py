_base_ = [
    '../_base_/models/sgformer_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_300e.py',
    '../_base_/mmpretrain_runtime.py',
]
model = dict(backbone=dict(arch='s', drop_path_rate=0.1))
