"""Tests: unit/ mirrors the tree and needs no Ray, ray/ shares a local Ray, e2e/ runs commands, k8s/ reads manifests."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
