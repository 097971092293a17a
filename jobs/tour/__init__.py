"""`striate tour`: a book on pictures, filters and networks, whose pictures and numbers are made on the spot."""
