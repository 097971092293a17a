"""Augments whole batches: drawn for all pictures at once, then executed by torch on any device.

The parameters are bit for bit those that `library.pipeline.augmentation.Augmenter` draws picture by picture. `drawing`
and what it imports do not import torch; `execution` and `kernels` do.
"""
