# AdamW, 300 epochs, 1024 images per step, EMA: the paper's classification recipe.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, end=300),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys=dict(pos_embed=dict(decay_mult=0.0))
    ),
)
# MMEngine's momentum is 1 - decay: the average keeps 0.99992 of itself per step. It is what is evaluated.
custom_hooks = [dict(type='EMAHook', momentum=8e-5)]
auto_scale_lr = dict(enable=False, base_batch_size=1024)
