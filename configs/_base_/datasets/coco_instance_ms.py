# Training pictures of many sizes: short side 480-800, long side 1333 at most.
_base_ = 'coco_instance.py'
train_pipeline = _base_.train_pipeline
train_pipeline[2] = dict(type='RandomResize', scale=[(1333, 480), (1333, 800)], keep_ratio=True)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
