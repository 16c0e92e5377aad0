_base_ = [
    '../_base_/models/sgformer_classifier.py',
    '../_base_/datasets/imagenette.py',
    '../_base_/schedules/study.py',
    '../_base_/mmpretrain_runtime.py',
]
model = dict(
    data_preprocessor=dict(num_classes=10),
    backbone=dict(arch='t', pretrain_img_size=112, drop_path_rate=0.1),
    head=dict(in_channels=256, num_classes=10),
    train_cfg=None,
)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=100, max_keep_ckpts=2),
)
log_processor = dict(by_epoch=False)
