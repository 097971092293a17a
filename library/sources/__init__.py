"""Lists the pictures of a source once, then reads them in any order, from any number of processes.

    listing = list_source("s3://raw/photos.tar.gz")          # holds no pictures
    rows = listing.index.slice(0, 1000)                      # plain data, which can be sent to any worker
    for read in read_pictures(listing.kind, rows, listing.gzip_indexes, Options()):
        ...                                                  # read.row, read.data or read.problem, read.extras

`extras_of(rows)` returns the extra columns that the listing already has; the others (`listing.late`) come with each
picture. Nothing is unpacked to disk, no archive member's name is used as a path, and nothing is executed.
"""

from library.sources.listing import INDEX_SCHEMA, LinkLimits, Listing, Options, Read, extras_of
from library.sources.source import list_source, read_pictures

__all__ = ["INDEX_SCHEMA", "LinkLimits", "Listing", "Options", "Read", "extras_of", "list_source", "read_pictures"]
