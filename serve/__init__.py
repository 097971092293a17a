"""Ray Serve: the HTTP face of finished classifiers, with a web page."""
