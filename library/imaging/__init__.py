"""Pictures as arrays: reading and writing every format, and contact sheets."""
