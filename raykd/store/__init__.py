"""Where things lie: places, folders that are complete or absent, every table's schema, and the lock. Knows no Ray."""
