"""The commands that exchange, merge and trace datasets, on Ray."""
