_base_ = 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py'
custom_imports = dict(imports=['mmsgformer'], allow_failed_imports=False)
model = dict(
    backbone=dict(_delete_=True, type='SGFormer', arch='s', drop_path_rate=0.1, out_indices=(3,)),
    head=dict(in_channels=512),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(pos_embed=dict(decay_mult=0))))
