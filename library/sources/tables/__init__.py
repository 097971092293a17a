"""Tables that list or describe pictures: CSV, JSON Lines, and files beside the pictures."""
