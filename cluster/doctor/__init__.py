"""`striate doctor`: whether a machine, a cluster and a bucket are fit for work."""
