_base_ = 'sgformer-t_upernet_camvid.py'
model = dict(backbone=dict(mixer='davit'))
