"""Pages of other origins that may ask (CORS): none, unless the settings name them."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware


def share_with(app: FastAPI, origins: Sequence[str]) -> None:
    """Let pages of `origins` ask `app`; before the guard, as browsers ask for leave without a key."""
    if not origins:
        return
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "Inference-Header-Content-Length", "X-Request-Id"],
        expose_headers=["Inference-Header-Content-Length", "Retry-After", "X-Request-Id"],
    )
