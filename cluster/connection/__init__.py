"""Connecting to Ray: `session` is the only place that calls `ray.init`."""
