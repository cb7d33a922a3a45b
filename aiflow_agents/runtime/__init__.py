"""How it runs: teams and agents, one world per task, batches handed over to hosts, answers remembered, every cost in a ledger."""
