_base_ = 'runtime.py'
default_scope = 'mmpretrain'
default_hooks = dict(visualization=dict(type='VisualizationHook'))
visualizer = dict(type='UniversalVisualizer', vis_backends=_base_.vis_backends, name='visualizer')
