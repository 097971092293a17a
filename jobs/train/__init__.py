"""Training: a recipe carried out on Ray Train."""
