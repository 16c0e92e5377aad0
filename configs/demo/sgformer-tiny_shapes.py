_base_ = [
    '../_base_/models/sgformer_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_300e.py',
    '../_base_/mmpretrain_runtime.py',
]
model = dict(
    data_preprocessor=dict(num_classes=4),
    backbone=dict(arch='t', drop_path_rate=0.0, pretrain_img_size=64),
    head=dict(in_channels=256, num_classes=4),
    train_cfg=None,
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64)),
    dict(type='PackInputs'),
]
shapes = dict(type='CustomDataset', classes=['disc', 'square', 'star', 'triangle'])
train_dataloader = dict(batch_size=32, num_workers=2, dataset=dict(**shapes, pipeline=train_pipeline))
val_dataloader = dict(batch_size=32, num_workers=2, dataset=dict(**shapes, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=50, end=400),
]
custom_hooks = [dict(type='EMAHook', momentum=0.05)]
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=10))
