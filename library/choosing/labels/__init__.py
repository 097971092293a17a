"""Label errors, outliers and the audit of splits: what a classifier disagrees with, ranked."""
