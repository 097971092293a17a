"""Starting a server: the command, its checks, and the Serve applications made of them."""
