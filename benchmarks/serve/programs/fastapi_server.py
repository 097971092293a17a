"""A classifier behind FastAPI: one picture at a time, one process per core with one thread of PyTorch each.

The endpoint computes in the event loop, because each process has one core and nothing else to do.
By hand, with the variables of classifier.py: `uvicorn benchmarks.serve.programs.fastapi_server:app --workers 2`.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request

from benchmarks.serve.programs.classifier import classifier

app = FastAPI()
_code = classifier()


@app.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    return _code.classify([_code.prepare(await request.body())])[0]
