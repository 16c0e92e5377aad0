_base_ = (
    __import__('mmseg').__path__[0] + '/.mim/configs/segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
)
custom_imports = dict(imports=['mmsgformer'], allow_failed_imports=False)
model = dict(
    backbone=dict(_delete_=True, type='SGFormer', arch='s', drop_path_rate=0.2),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(paramwise_cfg=dict(bias_decay_mult=0, custom_keys=dict(pos_embed=dict(decay_mult=0))))
