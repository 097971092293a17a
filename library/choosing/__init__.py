"""Which pictures stay: measures, duplicates, splits, label errors."""
