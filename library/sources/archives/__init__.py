"""Reads tar, zip and gzip archives in place; nothing is unpacked to disk."""
