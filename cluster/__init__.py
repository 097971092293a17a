"""Where striate runs: connections to Ray, its nodes and their resources, submitted jobs, and checks of all of them."""
