"""The commands info, show, steps and models, which look at datasets, pictures, steps and models."""
