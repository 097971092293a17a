"""What was drawn for a batch: operations with their parameters, each for some of its pictures. Imports no torch.

A step becomes one operation or several (a policy, which draws another one for each picture); an operation's rows are
the numbers of the pictures that drew it. All values are those of uint8 pictures, 0 to 255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from library.errors import BadPicture
from library.training.augmenting.streams import Rows

if TYPE_CHECKING:
    import torch  # takes seconds, and decoders import this module


@dataclass(frozen=True)
class Move:
    """Moves whole pixels: crops, flips, shifts. All results have one size.

    Attributes:
        rows: n pictures.
        ys: n x new height, the old row of each new one; -1 is outside the picture.
        xs: n x new width, the old column of each new one.
        value: what is outside the picture.
    """

    rows: Rows
    ys: NDArray[np.int64]
    xs: NDArray[np.int64]
    value: int

    @property
    def has_outside(self) -> bool:
        """Whether any pixel comes from outside the picture."""
        return bool((self.ys < 0).any() or (self.xs < 0).any())

    def then(self, other: Move) -> Move | None:
        """Both moves as one; None where that is impossible."""
        if not np.array_equal(self.rows, other.rows):
            return None
        if self.value != other.value and self.has_outside and other.has_outside:
            return None
        ys, xs = (
            np.where(after < 0, -1, np.take_along_axis(before, np.maximum(after, 0), 1))
            for before, after in ((self.ys, other.ys), (self.xs, other.xs))
        )
        return Move(self.rows, ys, xs, self.value if self.has_outside else other.value)


@dataclass(frozen=True)
class Warp:
    """Maps the plane linearly about the centre, with linear interpolation.

    Attributes:
        rows: n pictures of one size.
        inverses: n x 2 x 3, maps a new point (x to the right, y down) to the old one.
        fill: what is outside the picture: a value, edge, reflect or wrap.
    """

    rows: Rows
    inverses: NDArray[np.float64]
    fill: int | str


@dataclass(frozen=True)
class Resize:
    """Resizes a box of each picture: sides that shrink are averaged, sides that grow are interpolated linearly.

    Attributes:
        rows: n pictures.
        boxes: n x 4; top, left, height and width.
        size: the new height and width.
    """

    rows: Rows
    boxes: NDArray[np.int64]
    size: tuple[int, int]


@dataclass(frozen=True)
class Blur:
    """Blurs with Gaussians.

    Attributes:
        rows: n pictures.
        sigmas: n standard deviations in pixels.
    """

    rows: Rows
    sigmas: NDArray[np.float64]


@dataclass(frozen=True)
class Mean:
    """Replaces each pixel by the mean of a window.

    Attributes:
        rows: n pictures.
        size: side of the window in pixels, odd.
        border: what lies outside the picture, as `library.steps.arrays.Border`.
    """

    rows: Rows
    size: int
    border: str


@dataclass(frozen=True)
class Convolution:
    """Weighs the surroundings of each pixel.

    Attributes:
        rows: n pictures.
        weights: kernel rows x kernel columns.
        border: what lies outside the picture, as `library.steps.arrays.Border`.
    """

    rows: Rows
    weights: NDArray[np.float64]
    border: str


@dataclass(frozen=True)
class Unsharp:
    """Adds the difference from a Gaussian blur.

    Attributes:
        rows: n pictures.
        amount: factor of the difference.
        sigma: standard deviation in pixels.
    """

    rows: Rows
    amount: float
    sigma: float


@dataclass(frozen=True)
class Transpose:
    """Exchanges rows and columns.

    Attributes:
        rows: n pictures.
    """

    rows: Rows


@dataclass(frozen=True)
class Bands:
    """Picks channels.

    Attributes:
        rows: n pictures.
        bands: numbers of the channels that the result has.
    """

    rows: Rows
    bands: tuple[int, ...]


@dataclass(frozen=True)
class Composite:
    """Composites colours over a background; their alpha, the last channel, is gone afterwards.

    Attributes:
        rows: n pictures.
        background: a level for each colour.
    """

    rows: Rows
    background: NDArray[np.float32]


@dataclass(frozen=True)
class Grey:
    """Makes one channel: the luma of three, the mean of any other number.

    Attributes:
        rows: n pictures.
    """

    rows: Rows


@dataclass(frozen=True)
class Lookup:
    """Replaces each value by its entry in a table.

    Attributes:
        rows: n pictures.
        table: 256 entries.
    """

    rows: Rows
    table: NDArray[np.uint8]


@dataclass(frozen=True)
class Stretch:
    """Spreads the values of each channel between two percentiles from 0 to 255.

    Attributes:
        rows: n pictures.
        percentiles: the low and the high one.
    """

    rows: Rows
    percentiles: tuple[float, float]


@dataclass(frozen=True)
class Erase:
    """Replaces a rectangle of each picture.

    Attributes:
        rows: n pictures.
        boxes: n x 4; top, left, height and width.
        values: the rectangles' samples, one picture after the other; a single one for all.
    """

    rows: Rows
    boxes: NDArray[np.int64]
    values: NDArray[np.uint8]


@dataclass(frozen=True)
class Gain:
    """An operation with one number for each picture.

    Attributes:
        name: brightness, contrast, saturation, sharpness: a factor; hue: 256ths of the colour wheel; posterize: a mask
            of bits; solarize: the lowest value that is inverted; stretch, equalize, invert: none.
        rows: n pictures.
        amounts: n numbers.
    """

    name: str
    rows: Rows
    amounts: NDArray[np.float64]


@dataclass(frozen=True)
class ChannelShifts:
    """Adds a number to each channel.

    Attributes:
        rows: n pictures with as many channels.
        offsets: n x channels.
    """

    rows: Rows
    offsets: NDArray[np.int32]


@dataclass(frozen=True)
class Noise:
    """Adds noise to each sample.

    Attributes:
        rows: n pictures of one size.
        levels: n x height x width x channels, indices of `library.steps.augmentations.degradation.normal_levels`.
        sigma: standard deviation, in levels of the picture.
    """

    rows: Rows
    levels: NDArray[np.uint16]
    sigma: float


Operation: TypeAlias = (
    Move
    | Warp
    | Resize
    | Blur
    | Mean
    | Convolution
    | Unsharp
    | Transpose
    | Bands
    | Composite
    | Grey
    | Lookup
    | Stretch
    | Erase
    | Gain
    | ChannelShifts
    | Noise
)


@dataclass(frozen=True)
class Drawn:
    """What was drawn for a batch of n pictures.

    Attributes:
        operations: in order.
        shapes: n x 3; height, width and channels of each result.
        rejected: why a picture cannot be used, by its number.
    """

    operations: Sequence[Operation]
    shapes: NDArray[np.int64]
    rejected: Mapping[int, BadPicture]

    @property
    def first_boxes(self) -> NDArray[np.int64] | None:
        """The boxes, n x 4, of a resize of all pictures that comes first; None where there is none."""
        first = self.operations[0] if self.operations else None
        return first.boxes if isinstance(first, Resize) and len(first.rows) == len(self.shapes) else None

    def on_boxes(self) -> Drawn:
        """The same for pictures that have been cut to `first_boxes`."""
        first = self.operations[0] if self.operations else None
        if not isinstance(first, Resize) or self.first_boxes is None:
            return self
        boxes = np.concatenate([np.zeros((len(first.rows), 2), np.int64), first.boxes[:, 2:]], axis=1)
        return Drawn((Resize(first.rows, boxes, first.size), *self.operations[1:]), self.shapes, self.rejected)


@dataclass(frozen=True)
class RaggedPictures:
    """uint8 pictures of any sizes in one array.

    Attributes:
        flat: samples of these pictures, and maybe of others; each picture is height x width x channels. A tensor if a
            dataset's pictures are in the memory of a GPU.
        starts: n, index of each picture's first sample in `flat`.
        shapes: n x 3; height, width and channels of each picture.
        whole: n x 3; the same before a picture was cut to the box that its augmentation uses.
    """

    flat: NDArray[np.uint8] | torch.Tensor
    starts: NDArray[np.int64]
    shapes: NDArray[np.int64]
    whole: NDArray[np.int64]

    @classmethod
    def pack(cls, pictures: Sequence[NDArray[Any]], drawn: Drawn | None = None) -> RaggedPictures:
        """Packs uint8 pictures, one or more; if all are resized first, only the boxes that `drawn` uses."""
        whole = np.asarray([picture.shape for picture in pictures], np.int64)
        boxes = None if drawn is None else drawn.first_boxes
        if boxes is not None:
            pictures = [
                picture[top : top + height, left : left + width]
                for picture, (top, left, height, width) in zip(pictures, boxes.tolist(), strict=True)
            ]
        ends = np.cumsum([picture.size for picture in pictures])
        shapes = np.asarray([picture.shape for picture in pictures], np.int64)
        return cls(
            np.concatenate([picture.reshape(-1) for picture in pictures]), np.append(0, ends[:-1]), shapes, whole
        )

    @classmethod
    def concatenate(cls, parts: Sequence[RaggedPictures]) -> RaggedPictures:
        """Joins parts in order; the result holds no other pictures than theirs, nor those that lie between them."""
        parts = [part.cut() for part in parts]
        offsets = np.cumsum([0, *(len(part.samples) for part in parts[:-1])])
        return cls(
            np.concatenate([part.samples for part in parts]),
            np.concatenate([part.starts + offset for part, offset in zip(parts, offsets, strict=True)]),
            np.concatenate([part.shapes for part in parts]),
            np.concatenate([part.whole for part in parts]),
        )

    @property
    def samples(self) -> NDArray[np.uint8]:
        """`flat` in this process's memory."""
        return self.flat if isinstance(self.flat, np.ndarray) else self.flat.cpu().numpy()

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> RaggedPictures:
        return RaggedPictures(self.flat, self.starts[rows], self.shapes[rows], self.whole[rows])

    def cut(self) -> RaggedPictures:
        """The same pictures without the samples before the first and after the last."""
        if not len(self):
            return RaggedPictures(self.samples[:0], self.starts, self.shapes, self.whole)
        first, last = int(self.starts.min()), int((self.starts + self.shapes.prod(axis=1)).max())
        return RaggedPictures(self.samples[first:last], self.starts - first, self.shapes, self.whole)

    def arrays(self) -> list[NDArray[np.uint8]]:
        """Each picture, height x width x channels; views."""
        ends = self.starts + self.shapes.prod(axis=1)
        pairs = zip(self.starts.tolist(), ends.tolist(), self.shapes.tolist(), strict=True)
        return [self.samples[start:end].reshape(shape) for start, end, shape in pairs]


@dataclass(frozen=True)
class UndonePictures:
    """Pictures of a batch that have yet to be augmented; none is rejected, and all results have one shape.

    Attributes:
        pictures: n pictures.
        drawn: what is done to them.
    """

    pictures: RaggedPictures
    drawn: Drawn

    def __len__(self) -> int:
        return len(self.pictures)

    def packed(self) -> UndonePictures:
        """The same in an array that holds nothing but what is used of them."""
        return UndonePictures(RaggedPictures.pack(self.pictures.arrays(), self.drawn), self.drawn.on_boxes())
