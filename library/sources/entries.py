"""Files as a folder or an archive holds them, before anything is known about labels; and which ones are passed over."""

from __future__ import annotations

import posixpath
from collections import Counter
from dataclasses import dataclass, field

from library.sources.index import printable

#: Names that are taken for pictures when sidecars, labels and splits are looked for. What a file really is, its bytes
#: say later; formats that we do not decode are here so that a reject still has its label.
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
# What lies beside pictures: texts and lists, annotations, programs, archives, tensors, films. A name that is neither
# here nor among the pictures is looked at.
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
    """The files of one container, in columns (a million rows must not need a million objects).

    Attributes:
        path: below the container, with `/`, printable; unique unless the archive repeats itself.
        uri: the file, or the archive.
        at: first byte in the archive (zip: of the local header); 0 for a file.
        size: bytes of the file itself.
        block: see INDEX_SCHEMA.
        problem: why a file is known to be unusable.
        stored: of zip members: span, compressed size, method, checksum.
        texts: content of small sidecars that was at hand while listing, by row.
        skipped: what was passed over, by reason.
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
    return suffix_of(path) in PICTURE_SUFFIXES


def is_other_name(path: str) -> bool:
    """Whether a name says that the file is no picture: README.md, LICENSE, labels.csv, annotations.xml."""
    stem, suffix = posixpath.splitext(posixpath.basename(path).lower())
    return suffix[1:] in _OTHER_SUFFIXES or (not suffix and stem in _OTHER_NAMES)


def why_skipped(name: str) -> str | None:
    """`system` or `hidden` for one part of a path that no picture lies under, or None."""
    if name.lower() in _SYSTEM or name.endswith(":Zone.Identifier"):  # as WSL copies what Windows notes of a download
        return "system"
    return "hidden" if name.startswith(".") else None


def member_path(name: str) -> tuple[str, str | None, str | None]:
    """An archive member's name made a path: the path, why it is skipped, what is wrong with it.

    A name that would lead out of the folder it is unpacked into is refused as a row: nothing is ever unpacked, but
    its key would name a file elsewhere.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or (len(name) > 1 and name[1] == ":"):
        return printable(name), None, f"unsafe_name: the archive names it '{printable(name)}', which leads out of it"
    for part in parts:
        reason = why_skipped(part)
        if reason is not None:
            return "", reason, None
    return printable("/".join(parts)), None, None
