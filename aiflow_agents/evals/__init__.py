"""Is the team smarter? Suites, scorers, arms, the runner, the run folder, statistics, verdicts and the report."""
