"""How good a classifier is: sums over its pictures, the measures made of them, and the page that shows both."""
