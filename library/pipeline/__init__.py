"""Pipelines: steps in order, and the code that runs them over pictures."""

from library.pipeline.pipeline import Pipeline

__all__ = ["Pipeline"]
