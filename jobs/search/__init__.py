"""The search for filters that help: `striate search`."""
