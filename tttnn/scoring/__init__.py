"""Rolling log-likelihood, metrics, the results file."""
