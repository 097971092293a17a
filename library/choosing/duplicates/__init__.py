"""Pictures that are there more than once: neighbours among hashes, groups of them, and which one of a group stays."""
