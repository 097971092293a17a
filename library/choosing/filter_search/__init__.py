"""Which filter helps? Candidates, the race that drops them, and the test of those that are left."""
