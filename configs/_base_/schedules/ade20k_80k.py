# Semantic FPN's usual recipe with transformers (PVT's): a higher rate, less weight decay, half as long.
_base_ = 'ade20k_160k.py'
train_cfg = dict(max_iters=80000)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(power=0.9, end=80000)
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=1e-4))
