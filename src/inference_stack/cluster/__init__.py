"""Where nodes are: found by static lists, names and files. Placing them on machines belongs to others."""
