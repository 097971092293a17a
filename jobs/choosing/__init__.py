"""The commands that choose pictures, on Ray."""
