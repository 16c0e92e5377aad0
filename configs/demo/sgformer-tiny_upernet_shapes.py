_base_ = [
    '../_base_/models/upernet_sgformer.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_160k.py',
    '../_base_/mmseg_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(112, 112)),
    backbone=dict(arch='t', drop_path_rate=0.0, pretrain_img_size=112),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=128, dropout_ratio=0.0, num_classes=5),
    auxiliary_head=dict(in_channels=128, channels=64, num_classes=5),
)

metainfo = dict(
    classes=('background', 'disc', 'square', 'triangle', 'star'),
    palette=[[90, 90, 90], [220, 20, 60], [0, 130, 200], [60, 180, 75], [245, 130, 48]],
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomFlip', prob=[0.4, 0.4], direction=['horizontal', 'vertical']),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
shapes = dict(type='BaseSegDataset', metainfo=metainfo, reduce_zero_label=True)
train_dataloader = dict(batch_size=8, num_workers=2, dataset=dict(**shapes, pipeline=train_pipeline))
val_dataloader = dict(num_workers=2, dataset=dict(**shapes, pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=400, val_interval=100)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=50, end=400),
]
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=1.0))
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=100))
