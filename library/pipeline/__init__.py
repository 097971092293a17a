"""Pipelines: steps in order, and what runs them over pictures."""

from library.pipeline.pipeline import Pipeline

__all__ = ["Pipeline"]
