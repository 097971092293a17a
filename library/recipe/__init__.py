"""Recipes: YAML files that say what is trained on what, and how. docs/recipes.md lists every field.

    recipe = Recipe.load("jobs/recipes/lenet-mnist.yaml", ["data.train=out/mnist/train", "epochs=5"])
    recipe.optimizer.lr

This package does not import torch.
"""

from library.recipe.recipe import Recipe
from library.recipe.schema import Data, EarlyStopping, Input, Loss, Optimizer, Schedule

__all__ = ["Data", "EarlyStopping", "Input", "Loss", "Optimizer", "Recipe", "Schedule"]
