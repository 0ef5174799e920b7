"""What people and oracles say: the ledger, and the files it comes in. Knows no Ray."""
