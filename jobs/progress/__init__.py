"""How far a job is: what workers report, what a terminal shows, and what Prometheus reads."""
