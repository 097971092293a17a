"""The HTTP face of a finished classifier (Ray Serve). Empty until the first classifier can be trained."""
