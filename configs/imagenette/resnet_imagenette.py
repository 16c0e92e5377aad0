_base_ = ['sgformer-t_imagenette.py', '../_base_/peers/resnet.py']
model = dict(
    backbone=dict(_base_.peer, _delete_=True, out_indices=(3,)), head=dict(in_channels=_base_.channels[3])
)
