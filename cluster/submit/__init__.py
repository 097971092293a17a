"""`striate submit`: commands as jobs of a cluster."""
