"""The page of a campaign. Knows no Ray, reads no folder: it is given everything it shows."""
