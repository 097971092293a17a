"""A look inside a classifier: what its stages compute, what its units look for, and which parts of a picture count.

The functions return arrays, and `library.evaluation.inside.band_drawing` draws them. Only `embedding` (scikit-learn)
and the page need more than PyTorch and OpenCV, so the served page can use the others.
"""
