"""`striate demo`: the whole way from pictures to a classifier, on pictures that come with the packages."""
