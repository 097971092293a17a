"""The quality of a classifier: sums over its pictures, the metrics computed from them, and the report page."""
