_base_ = ['../camvid/sgformer-s_upernet_camvid.py', '../_base_/peers/davit-t.py']
model = dict(
    backbone=dict(_base_.peer, _delete_=True),
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]),
)
