"""Encoded pictures of every kind, tables and datasets of them, generated in code."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pyarrow as pa
import tifffile
from numpy.typing import NDArray
from PIL import Image

from library.choosing.measures.measuring import DEFAULT, check_columns
from library.choosing.measures.picture_models import PictureModel
from library.choosing.measures.side_table import Parts
from library.dataset.destination import claim, finish
from library.dataset.manifest import Job, Manifest, ShardReport
from library.dataset.planning import Layout, plan
from library.dataset.record import ImageRecord, dataset_schema, table_of
from library.dataset.task import ShardTask
from library.dataset.totals import Totals
from library.errors import BadPicture
from library.imaging import codec
from library.imaging.codec import Encoding
from library.sources import Options, list_source
from library.work.ingest_shard import IngestJob
from library.work.measure_shard import MeasureJob
from library.work.model_shard import ModelJob

ORIENTATION = 0x0112


def scene(height: int = 24, width: int = 32, channels: int = 3, dtype: str = "uint8") -> NDArray[Any]:
    """Slopes that differ by channel and direction: every flip, rotation or swap of channels changes the picture."""
    y, x = np.mgrid[0:height, 0:width]
    slopes = [(y * (3 + band) + x * (5 - band % 4) + 40 * band + (y < 3) * 60) % 256 for band in range(channels)]
    values = np.stack(slopes, axis=-1)
    if dtype == "uint16":
        return (values * 256 + (values * 7) % 256).astype(np.uint16)
    return values.astype(np.uint8) if dtype == "uint8" else (values / 255).astype(np.float32)


def encoded(kind: str = "jpeg", height: int = 24, width: int = 32, channels: int = 3, dtype: str = "uint8") -> bytes:
    """A scene encoded as `kind`: an encoding such as `jpeg:80`, or `bmp` or `gif`."""
    pixels = scene(height, width, channels, dtype)
    return (
        pil_bytes(Image.fromarray(pixels), kind)
        if kind in ("bmp", "gif")
        else codec.encode(pixels, Encoding.parse(kind))[0]
    )


def pil_bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def tiff_bytes(pixels: NDArray[Any], **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, metadata=None, **options)
    return out.getvalue()


def heic_bytes(pixels: NDArray[Any], orientation: int = 1, *, premultiplied: bool = False, bits: int = 10) -> bytes:
    """A lossless HEIC of uint8, or of uint16 reduced to `bits`; the orientation becomes the container's rotation."""
    modes = {1: "L", 3: "RGB", 4: "RGBa" if premultiplied else "RGBA"}
    mode = modes[pixels.shape[2]]
    if pixels.dtype == np.uint16:
        mode = "I;16" if mode == "L" else f"{mode};16"
    file = pillow_heif.from_bytes(mode, (pixels.shape[1], pixels.shape[0]), np.ascontiguousarray(pixels).tobytes())
    file.info["exif"] = orientation_exif(orientation).tobytes()
    out = io.BytesIO()
    file.save(out, quality=-1, chroma=444, matrix_coefficients=0, save_to_12bit=bits == 12)
    return out.getvalue()


def with_tiff_tag(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with one single-valued tag of its first page replaced."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages[0].tags[tag].offset  # type: ignore[union-attr]
    return data[: at + 2] + struct.pack("<HII", 4, 1, value) + data[at + 12 :]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bytes(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG from its parts: `rows` are the filtered rows, `extra` the chunks before the pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def npy_bytes(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text + data


def orientation_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def kinds() -> dict[str, bytes]:
    """A small picture of every supported kind."""
    colour, grey = Image.fromarray(scene()), Image.fromarray(scene(channels=1)[:, :, 0])
    palette = colour.quantize(16)
    rgba = Image.fromarray(scene(channels=4))
    frames = {"save_all": True, "append_images": [Image.fromarray(scene()[::-1])]}
    pictures = {
        "jpeg": encoded("jpeg"),
        "jpeg grey": encoded("jpeg", channels=1),
        "jpeg progressive": pil_bytes(colour, "jpeg", progressive=True),
        "jpeg cmyk": pil_bytes(Image.fromarray(scene(channels=4), "CMYK"), "jpeg"),
        "jpeg turned": pil_bytes(colour, "jpeg", exif=orientation_exif(6)),
        "png 1-bit": pil_bytes(grey.convert("1"), "png"),
        "png palette": pil_bytes(palette, "png"),
        "png palette transparent": pil_bytes(palette, "png", transparency=3),
        "png grey alpha": pil_bytes(rgba.convert("LA"), "png"),
        "png grey alpha uint16": png_bytes(8, 4, 16, 4, (b"\0" + bytes(range(32))) * 4),
        "png 4-bit": png_bytes(8, 4, 4, 0, (b"\0" + bytes([0x01, 0x23, 0x45, 0xEF])) * 4),
        "png turned": pil_bytes(colour, "png", exif=orientation_exif(6)),
        "webp lossless": pil_bytes(rgba, "webp", lossless=True),
        "webp turned": pil_bytes(colour, "webp", exif=orientation_exif(6)),
        "webp animated": pil_bytes(colour, "webp", **frames),
        "gif": pil_bytes(colour, "gif"),
        "gif animated": pil_bytes(colour, "gif", **frames),
        "gif transparent": pil_bytes(palette, "gif", transparency=2),
        "bmp": pil_bytes(colour, "bmp"),
        "bmp palette": pil_bytes(palette, "bmp"),
        "bmp grey": pil_bytes(grey, "bmp"),
        "tiff palette": pil_bytes(palette, "tiff"),
        "tiff 1-bit": pil_bytes(grey.convert("1"), "tiff"),
        "tiff 1-bit group4": pil_bytes(grey.convert("1"), "tiff", compression="group4"),
        "tiff cmyk": pil_bytes(Image.fromarray(scene(channels=4), "CMYK"), "tiff"),
        "tiff jpeg": tiff_bytes(scene(), photometric="rgb", compression="jpeg"),
        "tiff tiles": tiff_bytes(scene(40, 24), photometric="rgb", tile=(16, 16), compression="zlib"),
        "tiff planes": tiff_bytes(
            np.moveaxis(scene(channels=5), 2, 0), photometric="minisblack", planarconfig="separate"
        ),
        "tiff int32": tiff_bytes(scene(channels=1)[:, :, 0].astype(np.int32), photometric="minisblack"),
        "tiff float64": tiff_bytes(scene(channels=1, dtype="float32")[:, :, 0].astype(np.float64)),
        "avif": pil_bytes(colour, "avif", quality=90),
        "avif grey": pil_bytes(grey, "avif", quality=90),
        "avif alpha": pil_bytes(rgba, "avif", quality=90),
        "avif turned": pil_bytes(colour, "avif", exif=orientation_exif(6)),
        "avif animated": pil_bytes(colour, "avif", **frames),
        "heic": heic_bytes(scene()),
        "heic grey": heic_bytes(scene(channels=1)),
        "heic alpha": heic_bytes(scene(channels=4)),
        "heic 10-bit": heic_bytes(scene(dtype="uint16")),
        "heic turned": heic_bytes(scene(), 6),
        "jp2": pil_bytes(colour, "jpeg2000"),
        "jp2 codestream": pil_bytes(rgba, "jpeg2000", no_jp2=True),
        "jp2 lossy": pil_bytes(colour, "jpeg2000", irreversible=True, quality_layers=[20]),
        "jp2 grey uint16": pil_bytes(Image.fromarray(scene(channels=1, dtype="uint16")[:, :, 0]), "jpeg2000"),
        "npy flat": npy_array(scene(channels=1)[:, :, 0]),
        "npy columns first": npy_array(np.asfortranarray(scene())),
        "npy big-endian": npy_array(scene(dtype="uint16").astype(">u2")),
    }
    for name, channels, dtypes in (("png", (1, 3, 4), ("uint8", "uint16")), ("webp", (3, 4), ("uint8",))):
        for count in channels:
            pictures |= {f"{name} {count} {dtype}": encoded(name, channels=count, dtype=dtype) for dtype in dtypes}
    for name in ("tiff", "npy"):
        for count in (1, 2, 3, 4, 7):
            pictures |= {
                f"{name} {count} {dtype}": encoded(name, channels=count, dtype=dtype) for dtype in codec.DTYPES
            }
    return pictures


def npy_array(pixels: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, pixels)
    return out.getvalue()


def table(pictures: Sequence[bytes | None], labels: Sequence[str | None] | None = None, **extras: Any) -> pa.Table:
    """Rows of a dataset with the keys "0", "1", ...; a damaged picture gets a plausible header."""
    columns = {name: pa.array(values) for name, values in extras.items()}
    records: list[ImageRecord] = []
    for row, data in enumerate(pictures):
        try:
            header = codec.probe(data or b"")
        except BadPicture:
            header = codec.Header("jpeg", 32, 24, 3)
        values = {name: column[row].as_py() for name, column in columns.items()}
        records.append(
            ImageRecord(str(row), data, f"folder/{row}.{header.format}", labels and labels[row], header, values)
        )
    return table_of(records, dataset_schema([pa.field(name, column.type) for name, column in columns.items()]))


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def ingest(
    source: Path,
    destination: Path,
    *,
    verify: bool = False,
    measure: bool = False,
    repair: bool = False,
    shard_bytes: int | None = None,
) -> Manifest:
    """Ingests a source into a finished dataset, without Ray."""
    listing = list_source(str(source))
    work = IngestJob.of(listing, Options(), verify=verify, measure=measure, repair=repair)
    tasks = plan(listing.index, str(destination), Layout(shard_bytes))
    job = Job(kind="ingest", source=str(source))
    claim(str(destination), [job], overwrite=False)
    totals = Totals.of(work.run(task, lambda _: None) for task in tasks)
    return finish(str(destination), [job], totals, skipped=listing.skipped)


def measure(dataset: Path, manifest: Manifest, *columns: str, folder: Path | None = None) -> list[ShardReport]:
    """Writes the side table of a dataset, without Ray; all default measures unless some are named."""
    work = MeasureJob(str(folder or dataset / "_measures"), check_columns(columns or DEFAULT))
    stems = [(shard.name.removesuffix(".parquet"), shard) for shard in manifest.shards]
    return [work.run(ShardTask(str(dataset), stem, shard.digest, shard.rows), lambda _: None) for stem, shard in stems]


def outputs_of(dataset: Path, manifest: Manifest, model: str, *columns: str) -> pa.Table:
    """Reads what a model has written to its side table: key and the columns."""
    parts = Parts(str(dataset / "_measures" / model), manifest.shards)
    return pa.concat_tables([table.replace_schema_metadata(None) for table in parts.read(["key", *columns])])


def measure_with_model(dataset: Path, manifest: Manifest, model: PictureModel) -> None:
    """Writes the side table of a model, without Ray."""
    work = ModelJob(str(dataset / "_measures" / model.name), model)
    for shard in manifest.shards:
        task = ShardTask(str(dataset), shard.name.removesuffix(".parquet"), shard.digest, shard.rows)
        assert work.run(task, lambda _: None).tally.balanced
