"""Where it runs: connecting to Ray, and what there is to run on."""
