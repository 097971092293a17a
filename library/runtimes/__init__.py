"""Ways to compute a bundle's probabilities: the bundle itself, torch.compile, or ONNX Runtime.

    runtime = open_runtime(bundle, "auto")
    runtime.probabilities([bundle.prepare(data)])     # N x classes
    tuning = tune(runtime, bundle)                    # batch size, and how long to wait for a batch

Importing this package, `onnx_session`, `kept_graphs` and `without_torch` does not import torch: commands check a
runtime's name before they do, and a worker that runs an exported graph needs none.
"""

from typing import Literal, TypeAlias, get_args

#: How a bundle is computed: by one runtime, or auto, the fastest that gives the bundle's own answers.
RuntimeName: TypeAlias = Literal["auto", "eager", "compile", "onnx"]
#: Every runtime by name.
NAMES: tuple[str, ...] = get_args(RuntimeName)[1:]
#: The same as text, for help and errors.
NAMES_TEXT = f"{', '.join(NAMES[:-1])} or {NAMES[-1]}"
