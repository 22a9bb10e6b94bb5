"""The names of the projection's algorithms, apart from what needs torch: the command line names them before it loads."""

ALGORITHMS = ("auto", "full", "truncated", "gram", "block", "products")
