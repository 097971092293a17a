"""Commands that exchange datasets with other tools, join and split them, and trace their pictures."""
