"""What several test files share: reference computations, miniature data sets, small networks."""
