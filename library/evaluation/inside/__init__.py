"""A look inside a classifier: what its stages compute, what its units look for, and which parts of a picture count.

The functions return arrays; `library.evaluation.inside.band_drawing` makes pictures of them. None needs more than PyTorch
and OpenCV, so that the served page can use them, but `embedding` (scikit-learn) and `inside_page` (the report's page).
"""
