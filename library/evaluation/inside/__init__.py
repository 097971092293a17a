"""A look inside a classifier: what its stages compute, what its units look for, and which parts of a picture count.

The functions return arrays, and `library.evaluation.inside.band_drawing` draws them. Only `embedding` (scikit-learn),
`draw_trust` (matplotlib) and the page (Jinja2) need more than PyTorch and OpenCV; the served page can use the others.
"""
