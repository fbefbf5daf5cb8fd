"""One op, one file: its function, its autograd Function, its module. :mod:`.shared` has what they share."""
