"""Splits whose groups do not straddle, folds, and leaks between splits."""
