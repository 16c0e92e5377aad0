_base_ = 'sgformer-t_upernet_camvid.py'
custom_imports = dict(imports=['mmsgformer.study.merge_order'], allow_failed_imports=False)
model = dict(backbone=dict(type='ReorderedSGFormer', merge_order='raster'))
