_base_ = [
    '../_base_/models/upernet_sgformer.py',
    '../_base_/datasets/camvid.py',
    '../_base_/schedules/study.py',
    '../_base_/mmseg_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(256, 256), seg_pad_val=11),
    backbone=dict(arch='t', pretrain_img_size=256, drop_path_rate=0.1),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=64, num_classes=11, ignore_index=11),
    auxiliary_head=dict(in_channels=128, channels=64, num_classes=11, ignore_index=11),
)
default_hooks = dict(checkpoint=dict(interval=100, max_keep_ckpts=2))
