"""The names of the algorithms for the projection, without torch: the command line names them before it loads that."""

ALGORITHMS = ("auto", "full", "truncated", "gram", "block", "products")
