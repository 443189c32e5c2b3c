"""What the tests share: the cases, the tiers, the tolerances, and what is compared with what."""
