"""Batches augmented on a GPU are those of the CPU, from any kind of memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline
from library.training.augmenting.drawing import BatchDrawer
from library.training.augmenting.execution import augmented_arrays, augmented_tensor
from library.training.augmenting.forms import steps_without_form
from library.training.augmenting.operations import RaggedPictures, UndonePictures
from tests.step_examples import AUGMENTATIONS, FILTERS, picture

pytestmark = pytest.mark.gpu

_SIDE = 24
_INPUTS = InputPipeline.parse("", f'resize([{_SIDE}, {_SIDE}], mode="exact")', (_SIDE, _SIDE), 3)


_TEXTS = [*AUGMENTATIONS, *(f"{text} | rgb" for text in FILTERS)]


@pytest.mark.parametrize("text", [text for text in _TEXTS if not steps_without_form(Pipeline.parse(text).steps)])
def test_a_gpu_augments_as_the_cpu_does(device: torch.device, text: str) -> None:
    shown = [picture(height=30 + number % 3, width=28 + number % 5, seed=number) for number in range(40)]
    drawer = BatchDrawer(Augmenter(Pipeline.parse(text), 1), _INPUTS)
    undone = drawer.undone(RaggedPictures.pack(shown), 2, [str(number) for number in range(len(shown))])
    expected = augmented_arrays(undone).astype(int)
    resident = dataclasses.replace(undone.pictures, flat=torch.from_numpy(undone.pictures.samples).to(device))
    for each in (undone, UndonePictures(resident, undone.drawn)):
        result = augmented_tensor(each, device)
        assert result.device.type == device.type
        levels = np.abs(result.cpu().numpy().astype(int) - expected)
        # Multiplications and additions may be fused on a GPU; a policy may multiply the difference.
        assert levels.max() <= 4
        assert levels.mean() <= 0.05
