"""The benchmark behind ``make bench``: ratios against a plain C program, on a synthetic node, in one run."""
