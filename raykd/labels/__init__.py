"""What people say of images: the files they write, and the ledger of all they ever said. Knows no Ray."""
