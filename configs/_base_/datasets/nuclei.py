# 2018 Data Science Bowl. Elsewhere? tools/train.py and tools/test.py take --data-root PATH.
data_root = 'data/dsb2018/'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomCrop', crop_size=(256, 256), recompute_bbox=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(2, 2)),  # what the crop cut away
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale_factor=1.0),  # says that there is nothing to undo
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances'),
    ),
]
train_set = dict(
    type='CocoDataset',
    data_root=data_root,
    ann_file='annotations/instances_train.json',
    data_prefix=dict(img='train/'),
    metainfo=dict(classes=('nucleus',), palette=[(220, 20, 60)]),
)
# Every eighth image of train is held out: for choosing learning rates. "val" is tested, once.
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(train_set, indices=[i for i in range(498) if i % 8 != 7], pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(train_set, indices=list(range(7, 498, 8)), test_mode=True, pipeline=test_pipeline),
)
test_dataloader = dict(
    val_dataloader,
    dataset=dict(
        train_set,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
# AP50 and AP75 count up to 500 objects an image; AP over thresholds always 100, of up to 375.
# The held-out images' truth is what the data set loaded, a part of the annotation file.
val_evaluator = dict(type='CocoMetric', metric=['bbox', 'segm'], proposal_nums=(100, 300, 500))
test_evaluator = dict(
    type='CocoMetric',
    ann_file=data_root + 'annotations/instances_val.json',
    metric=['bbox', 'segm'],
    proposal_nums=(100, 300, 500),
)
