"""What several benchmarks share: measuring, result files, photos and runs of Striate."""
