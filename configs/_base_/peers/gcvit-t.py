# Takes images of img_size alone: crops in training, sliding windows in the test.
peer = dict(type='TimmBackbone', name='gcvit_tiny', img_size=256, drop_path_rate=0.1)
channels = [64, 128, 256, 512]
