"""The files of a folder or archive, and which names are pictures, sidecars, other files, or skipped."""

from __future__ import annotations

import posixpath
from collections import Counter
from dataclasses import dataclass, field

from library.sources.listing import printable

#: Suffixes of pictures, for finding sidecars, labels and splits; whether a file is a picture is decided later from its
#: bytes. Formats that we do not decode are included so that the rejects have labels.
PICTURE_SUFFIXES = frozenset(
    (
        *("jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "tif", "tiff", "webp", "npy"),
        *(
            "heic",
            "heif",
            "hif",
            "heics",
            "avif",
            "avifs",
            "jp2",
            "j2k",
            "j2c",
            "jpc",
            "jpf",
            "jpx",
            "jxl",
            "ppm",
            "pgm",
            "pbm",
            "pnm",
            "svg",
            "ico",
        ),
    )
)
SIDECAR_SUFFIXES = frozenset(("txt", "json", "cls"))
MAX_SIDECAR_BYTES = 2**20
# Suffixes of files that are often beside pictures: texts, lists, annotations, programs, archives, tensors, videos. A
# file with any other suffix is read as a picture.
_OTHER_SUFFIXES = SIDECAR_SUFFIXES | frozenset(
    (
        "csv", "tsv", "jsonl", "ndjson", "xml", "yaml", "yml", "toml", "ini", "cfg", "names", "lst", "log", "sql",
        "md", "rst", "rtf", "html", "htm", "css", "js", "pdf", "doc", "docx", "odt", "xls", "xlsx", "ppt", "pptx",
        "py", "pyc", "ipynb", "sh", "bat", "ps1", "c", "cpp", "h", "java", "r", "exe", "dll", "so", "lnk", "url",
        "tar", "gz", "tgz", "zip", "7z", "rar", "bz2", "xz", "zst", "torrent", "md5", "sha1", "sha256", "sha512",
        "npz", "mat", "pkl", "pickle", "pt", "pth", "safetensors", "onnx", "h5", "hdf5", "parquet", "pq", "arrow",
        "feather", "db", "sqlite", "sqlite3", "mdb", "tfrecord", "tfrecords", "rec", "idx",
        "mp4", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "mp3", "wav", "srt",
    )
)  # fmt: skip
_OTHER_NAMES = frozenset(
    (
        "readme", "license", "licence", "copying", "copyright", "notice", "authors", "credits", "changelog",
        "citation", "contributing", "version", "makefile", "dockerfile", "md5sums", "sha256sums", "checksums",
    )
)  # fmt: skip
_SYSTEM = frozenset(
    (
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", "icon\r", "icon\\x0d", "picasa.ini"),
        *("thumbs.db:encryptable", "zbthumbnail.info", "$recycle.bin", "system volume information", "lost+found"),
        "@eadir",
    )
)


@dataclass
class Entries:
    """The files of one folder or archive, in columns (so that a million rows do not need a million objects).

    Attributes:
        path: path below the folder or in the archive, with `/`, printable; an archive may repeat a path.
        uri: URI of the file, or of the archive.
        at: offset of the first byte in the archive (zip: of the local header); 0 for a file.
        size: bytes of the file itself, uncompressed.
        block: see INDEX_SCHEMA.
        problem: why the file cannot be used, if that is known.
        stored: for zip members: span, compressed size, method, checksum.
        texts: content of small sidecars that was read while listing, by row.
        skipped: number of skipped files by reason.
        notes: sentences for the user.
    """

    path: list[str] = field(default_factory=list[str])
    uri: list[str] = field(default_factory=list[str])
    at: list[int] = field(default_factory=list[int])
    size: list[int] = field(default_factory=list[int])
    block: list[int | None] = field(default_factory=list[int | None])
    problem: list[str | None] = field(default_factory=list[str | None])
    stored: list[tuple[int, int, int, int] | None] = field(default_factory=list[tuple[int, int, int, int] | None])
    texts: dict[int, bytes] = field(default_factory=dict[int, bytes])
    skipped: Counter[str] = field(default_factory=Counter[str])
    notes: list[str] = field(default_factory=list[str])

    def add(
        self,
        path: str,
        uri: str,
        at: int,
        size: int,
        *,
        block: int | None = None,
        problem: str | None = None,
        stored: tuple[int, int, int, int] | None = None,
    ) -> None:
        """Adds one file; the arguments are those of the columns."""
        self.path.append(path)
        self.uri.append(uri)
        self.at.append(at)
        self.size.append(size)
        self.block.append(block)
        self.problem.append(problem)
        self.stored.append(stored)

    def __len__(self) -> int:
        return len(self.path)


def suffix_of(path: str) -> str:
    """The extension in lower case, without its dot."""
    return posixpath.splitext(path)[1][1:].lower()


def is_picture_name(path: str) -> bool:
    """Whether a path has the suffix of a picture."""
    return suffix_of(path) in PICTURE_SUFFIXES


def is_other_name(path: str) -> bool:
    """Whether a name shows that the file is not a picture: README.md, LICENSE, labels.csv, annotations.xml."""
    stem, suffix = posixpath.splitext(posixpath.basename(path).lower())
    return suffix[1:] in _OTHER_SUFFIXES or (not suffix and stem in _OTHER_NAMES)


def why_skipped(name: str) -> str | None:
    """`system` or `hidden` if files under this part of a path are skipped, else None."""
    if name.lower() in _SYSTEM or name.endswith(
        ":Zone.Identifier"
    ):  # Windows' notes about downloads, as WSL shows them
        return "system"
    return "hidden" if name.startswith(".") else None


def member_path(name: str) -> tuple[str, str | None, str | None]:
    """The path of an archive member, why it is skipped, and its problem, from its name.

    A name that would lead outside the folder it is unpacked into is a problem, although nothing is unpacked: its key
    would name a file elsewhere.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or (len(name) > 1 and name[1] == ":"):
        return (
            printable(name),
            None,
            f"unsafe_name: its name in the archive, '{printable(name)}', leads outside the archive",
        )
    for part in parts:
        reason = why_skipped(part)
        if reason is not None:
            return "", reason, None
    return printable("/".join(parts)), None, None
