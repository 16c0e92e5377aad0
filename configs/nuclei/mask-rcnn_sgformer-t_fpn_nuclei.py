_base_ = [
    '../_base_/models/mask-rcnn_sgformer_fpn_small.py',
    '../_base_/datasets/nuclei.py',
    '../_base_/schedules/study.py',
    '../_base_/mmdet_runtime.py',
]
model = dict(
    backbone=dict(arch='t', pretrain_img_size=256, drop_path_rate=0.1),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=100, max_keep_ckpts=2),
)
log_processor = dict(by_epoch=False)
