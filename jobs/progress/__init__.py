"""The progress of a job: reports of workers, the display on a terminal, and metrics for Prometheus."""
