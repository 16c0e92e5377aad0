# SegNet's CamVid: 11 classes, 480 x 360. Elsewhere? tools/train.py and tools/test.py take --data-root PATH.
data_root = 'data/camvid/'
metainfo = dict(
    classes=(
        'sky',
        'building',
        'pole',
        'road',
        'pavement',
        'tree',
        'sign_symbol',
        'fence',
        'car',
        'pedestrian',
        'bicyclist',
    ),
    palette=[
        [128, 128, 128],
        [128, 0, 0],
        [192, 192, 128],
        [128, 64, 128],
        [60, 40, 222],
        [128, 128, 0],
        [192, 128, 128],
        [64, 64, 128],
        [64, 0, 128],
        [64, 64, 0],
        [0, 128, 192],
    ],
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(256, 256), cat_max_ratio=0.75, ignore_index=11),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
# Held out, for choosing learning rates: the last ten of every eighty frames of train, 40 from three clips.
# SegNet's own validation images are every second frame of one clip and choose for that.
train_set = dict(
    type='BaseSegDataset',
    data_root=data_root,
    ann_file='train.txt',
    data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
    metainfo=metainfo,
    ignore_index=11,  # void
)
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(train_set, indices=[i for i in range(367) if i // 10 % 8 != 7], pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(train_set, indices=[i for i in range(367) if i // 10 % 8 == 7], pipeline=test_pipeline),
)
test_dataloader = dict(
    val_dataloader,
    dataset=dict(
        train_set,
        ann_file='test.txt',
        data_prefix=dict(img_path='images/test', seg_map_path='annotations/test'),
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'], ignore_index=11)
test_evaluator = val_evaluator
