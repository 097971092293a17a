"""Ways to compute a bundle's probabilities: the bundle itself, torch.compile, or ONNX Runtime.

runtime = open_runtime(bundle, "auto")
runtime.probabilities([bundle.prepare(data)])     # N x classes
tuning = tune(runtime, bundle)                    # batch size, and how long to wait for a batch
"""

from library.runtimes.runtime import NAMES, Runtime, open_runtime
from library.runtimes.tuning import Tuning, tune

__all__ = ["NAMES", "Runtime", "Tuning", "open_runtime", "tune"]
