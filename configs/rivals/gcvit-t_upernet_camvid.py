_base_ = ['../camvid/sgformer-s_upernet_camvid.py', '../_base_/peers/gcvit-t.py']
custom_imports = dict(imports=['mmsgformer.study.timm_backbone'], allow_failed_imports=False)
model = dict(
    backbone=dict(_base_.peer, _delete_=True),
    test_cfg=dict(mode='slide', crop_size=(256, 256), stride=(104, 112)),
)
