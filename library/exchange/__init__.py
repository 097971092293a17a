"""Exchange with other tools and between datasets: merging, formats of others, and where a picture came from."""
