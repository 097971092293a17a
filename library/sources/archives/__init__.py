"""Tar, zip and gzip archives, read where they lie; nothing is unpacked."""
