"""What is true of pictures and models anywhere: no Ray, no web framework, no environment."""
