_base_ = ['mask-rcnn_sgformer-t_fpn_nuclei.py', '../_base_/peers/convnext.py']
model = dict(backbone=dict(_base_.peer, _delete_=True), neck=dict(in_channels=_base_.channels))
