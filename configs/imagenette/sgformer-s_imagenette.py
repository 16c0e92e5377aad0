_base_ = 'sgformer-t_imagenette.py'
model = dict(backbone=dict(arch='s'), head=dict(in_channels=512))
