"""The `striate` command line: `app` holds all commands."""
